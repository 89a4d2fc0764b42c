"""Conversations about images, as multimodal language models are trained on them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact
from gmail_align.data.ids import key_id, name_id
from gmail_align.data.joins import match_captions
from gmail_align.data.json_files import read_json
from gmail_align.errors import DataError

CONVERSATIONS = "conversations"
"""Kind of an artifact, and stem of its file."""
IMAGE = "<image>"
"""Stands for an image inside a prompt."""
_PROMPTER, _ANSWERER = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer; the answer is None where a model is to give it."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns about images; ``<image>`` in a prompt stands for the next image.

    Raises:
        DataError: there is no turn, an answer is empty, or the images are more or fewer than the
            places for them.
    """

    sample_id: str
    turns: tuple[Turn, ...]
    image_ids: tuple[str, ...] = ()
    system: str | None = None
    """The system message; the template's own when None."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise DataError(f"sample {self.sample_id} does not have a prompt with an answer")
        for turn in self.turns:
            if turn.answer is not None and not turn.answer.strip():
                raise DataError(f"sample {self.sample_id} has an empty answer: remove the sample")
            if turn.answer is not None and IMAGE in turn.answer:
                raise DataError(
                    f"sample {self.sample_id} has {IMAGE} in an answer: remove it there"
                )
        places = sum(turn.prompt.count(IMAGE) for turn in self.turns)
        if places != len(self.image_ids):
            raise DataError(
                f"sample {self.sample_id} has {len(self.image_ids)} images and {places} times"
                f" {IMAGE} in its prompts: give one {IMAGE} for each image"
            )


def read_conversations(
    source: Path | Artifact, known: Container[str] = ()
) -> Iterator[Conversation]:
    """Read LLaVA's format: a JSON list of samples, or one sample a line.

    A sample has ``conversations``, a list of ``{"from": "human" | "gpt", "value": text}`` in turns;
    ``image``, a file name or a list of them; and ``id``, without which its number is the id. A file
    name becomes the id that an import gives the file. An artifact of kind ``conversations`` holds
    such lines, with the ids of images.

    Args:
        source: The file, or the artifact.
        known: Ids of the images. Of ``1.jpg`` and ``1.png`` in one folder, one has a longer id.

    Raises:
        DataError: the file cannot be read, or a sample is not a conversation; the message names the
            sample.
    """
    made = isinstance(source, Artifact)
    path = source.path(f"{CONVERSATIONS}.jsonl") if isinstance(source, Artifact) else source
    samples = read_json(path)
    if not isinstance(samples, list) or not samples:
        raise DataError(f"{path} does not hold a list of samples: give a file in LLaVA's format")

    def id_of(name: str) -> str:
        return whole if (whole := key_id(name)) in known else name_id(name)

    for number, sample in enumerate(samples):
        yield _conversation(sample, number, path, str if made else id_of)


def _conversation(
    sample: Any, number: int, path: Path, id_of: Callable[[str], str]
) -> Conversation:
    if not isinstance(sample, Mapping) or not isinstance(sample.get("conversations"), list):
        raise DataError(f"sample {number} of {path} does not have a list of conversations")
    name = str(sample.get("id", number))
    images = sample.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise DataError(f"sample {name} of {path} has an image that is not the name of a file")
    messages = sample["conversations"]
    if not all(isinstance(m, Mapping) and isinstance(m.get("value"), str) for m in messages):
        raise DataError(
            f"sample {name} of {path} has a message that is not text: give each a from and a value"
        )
    system = None
    if messages and messages[0].get("from") == "system":
        system, messages = messages[0]["value"], messages[1:]
    for place, message in enumerate(messages):
        if message.get("from") not in (_ANSWERER if place % 2 else _PROMPTER):
            raise DataError(
                f"sample {name} of {path} does not alternate between human and gpt, human first"
            )
    said = [message["value"] for message in messages]
    turns = [Turn(*two) for two in zip(said[::2], said[1::2], strict=False)]
    if len(messages) % 2:
        raise DataError(f"sample {name} of {path} ends without an answer: remove its last message")
    return Conversation(name, tuple(turns), tuple(map(id_of, images)), system)


def caption_conversations(
    image_ids: tuple[str, ...], captions: Artifact, prompt: str
) -> Iterator[Conversation]:
    """Turn captions into instructions: each is the answer to ``prompt`` about its image.

    Args:
        image_ids: Ids of real images, or of images generated from the captions.
        captions: An artifact of kind ``captions`` or ``pairs``.
        prompt: What is asked about every image.

    Raises:
        DataError: no caption belongs to any of the images.
    """
    for number, (image, text) in enumerate(match_captions(image_ids, captions)):
        yield Conversation(f"{image}:{number}", (Turn(f"{IMAGE}\n{prompt}", text),), (image,))
