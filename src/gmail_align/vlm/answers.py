"""The stage: answers of a multimodal language model to questions about images."""

from __future__ import annotations

import math
import random
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, fingerprint, read_jsonl, write_jsonl
from gmail_align.data.images import ImageStore
from gmail_align.data.model_outputs import PREDICTIONS, cut_mark, tell_cut
from gmail_align.data.questions import (
    ANSWER_BY_LETTER,
    ANSWER_BY_PHRASE,
    Question,
    letter,
    read_questions,
)
from gmail_align.encoders.preprocess import open_image
from gmail_align.errors import ConfigError, DataError
from gmail_align.progress import progress
from gmail_align.runtime import resolve_device
from gmail_align.vlm.config import AnswerConfig, AskConfig
from gmail_align.vlm.connector import Seen, project_tokens
from gmail_align.vlm.conversations import IMAGE, Conversation, Turn
from gmail_align.vlm.folder import load_llava
from gmail_align.vlm.model import Llava

_NAMED = re.compile(r"<image (\d)>")
_PARTS = "parts"


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the images that its places stand for."""

    text: str
    image_ids: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a model answered."""

    text: str
    cut: bool
    """Whether it stopped at its longest length, before an end."""


def question_prompt(question: Question) -> str:
    """Lay a question out as LLaVA-1.5's protocol for ScienceQA does.

    Images, context, question and choices are followed by how to answer: by a letter where there are
    choices, else by a word or a phrase.
    """
    lines = [IMAGE] * len(question.image_ids)
    lines += [f"Context: {question.hint}"] if question.hint else []
    lines.append(question.question.replace(IMAGE, ""))
    lines += [f"{letter(number)}. {choice}" for number, choice in enumerate(question.choices)]
    return "\n".join([*lines, ANSWER_BY_LETTER if question.choices else ANSWER_BY_PHRASE])


def mmmu_prompt(question: Question) -> Prompt:
    """Lay a question out as MMMU's configuration for LLaVA-1.5 does.

    An image stands where the question or a choice names it (``<image 2>``), as often as it is
    named. Images that are not named come first.
    """
    choices = [f"({letter(number)}) {one}\n" for number, one in enumerate(question.choices)]
    parts = [question.question, *(["".join(choices)] if choices else [])]
    how = ANSWER_BY_LETTER if choices else ANSWER_BY_PHRASE
    text = "\n\n".join([*parts, how]).replace(IMAGE, "")
    numbered = {name.rpartition("-")[2]: name for name in question.image_ids}
    named = [number for number in _NAMED.findall(text) if number in numbered]
    first = [name for number, name in numbered.items() if number not in named]
    text = _NAMED.sub(lambda place: IMAGE if place[1] in numbered else "", text)
    return Prompt(f"{IMAGE}\n" * len(first) + text, (*first, *(numbered[n] for n in named)))


@torch.inference_mode()
def answer(
    llava: Llava, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]], most: int
) -> list[Answer]:
    """Answer prompts together, each by its likeliest tokens.

    Args:
        llava: The model.
        prompts: The prompts; each ``<image>`` stands for the next of its images.
        images: The images of each prompt.
        most: Longest answer in tokens.

    Raises:
        DataError: a prompt has more or fewer places than images, or does not fit into the model.
    """
    layout, model = llava.layout, llava.model
    room = getattr(model.config.text_config, "max_position_embeddings", math.inf)
    rows = []
    for number, (prompt, own) in enumerate(zip(prompts, images, strict=True)):
        asked = Conversation(str(number), (Turn(prompt),), tuple(map(str, range(len(own)))))
        rows.append([token for part, _ in layout.segments(asked) for token in part])
        if len(rows[-1]) + most > room:
            raise DataError(
                f"the prompt that begins {prompt[:40]!r} has {len(rows[-1])} tokens, but the "
                f"language model has room for {room}, {most} of an answer among them: lower "
                "max_tokens, or ask with fewer words or images"
            )
    width, end = max(map(len, rows)), layout.end_id()
    ids = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    mask = torch.arange(width) >= width - torch.tensor([[len(row)] for row in rows])
    shown = [image for own in images for image in own]
    pixels = llava.preprocess(shown).to(model.device) if shown else None
    given = _asked_with(llava, ids.to(model.device), pixels)
    generated = model.generate(
        **given,
        attention_mask=mask.long().to(model.device),
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=end,
    )
    begun = width if "input_ids" in given else 0
    said = generated[:, begun:]
    texts = llava.tokenizer.batch_decode(said, skip_special_tokens=True)
    ended = (said == end).any(dim=1).tolist()
    return [Answer(text.strip(), not whole) for text, whole in zip(texts, ended, strict=True)]


def _asked_with(
    llava: Llava, ids: Int[Tensor, "b t"], pixels: Float[Tensor, "i 3 h w"] | None
) -> dict[str, Tensor]:
    """Return what a model is asked with: tokens and pixels, or embeddings for designs of ours."""
    if pixels is None:
        return {"input_ids": ids}
    if llava.head is None:
        return {"input_ids": ids, "pixel_values": pixels}
    inner, design = llava.model.model, llava.connector.design
    tokens = project_tokens(inner.vision_tower, llava.head, pixels, design)
    seen = llava.connector(inner.multi_modal_projector, Seen(tokens, ()))
    words = inner.get_input_embeddings()(ids)
    places = (ids == llava.layout.image_id())[..., None]
    return {"inputs_embeds": words.masked_scatter(places, seen.to(words.dtype))}


def predict_answers(
    vlm: Artifact,
    questions: Artifact | None,
    out: Path,
    config: AnswerConfig | None = None,
    *,
    images: Artifact | None = None,
    of: Collection[str] | None = None,
) -> Artifact:
    """Answer every question, or one prompt of every image; returns ``predictions``.

    ``predictions.jsonl`` holds ``{question_id, text, prompt}``, which ``evaluate answers`` reads;
    or, for a prompt, ``{image_id, text, prompt}``, which ``evaluate captions`` reads. A text that
    stopped at its longest length before an end has ``cut`` too, and the manifest counts these.

    Args:
        vlm: What :func:`~gmail_align.vlm.training.train_llava` made.
        questions: An artifact of kind ``questions``; None to ask ``config.prompt`` of every image.
        out: Folder of the predictions.
        config: How questions are answered.
        images: The images that the questions are about.
        of: Ids of the images that the prompt is asked of; every image when None.

    Raises:
        DataError: an image of a question is missing; the message names the question.
        ConfigError: a question has images and none are given, or there are both questions and a
            prompt, or neither; or there is one image, and images are to be shuffled.
    """
    how = config or AnswerConfig()
    if (questions is None) == (how.prompt is None) or (questions is None and images is None):
        raise ConfigError("give questions, or a prompt and images to ask it of")
    inputs = {"vlm": vlm}
    inputs |= {"questions": questions} if questions else {}
    inputs |= {"images": images} if images else {}
    chosen = {} if of is None else {"images": fingerprint(sorted(of))}
    identity = {"answers": "llava", **how.identity(), **chosen}
    draft = begin(out, "predictions", identity, inputs)
    if draft.complete is not None:
        return draft.complete
    store = ImageStore(images) if images else None
    asked, key = _asked(questions, store, of), "question_id" if questions else "image_id"
    other = shuffle_images(asked) if how.shuffle_images else {}
    llava = load_llava(vlm, resolve_device(how.device))
    lay_out, parts = _layout(questions, how.prompt), []
    with progress("answers", len(asked), "questions") as bar:
        for start in range(0, len(asked), how.batch_size):
            batch = asked[start : start + how.batch_size]
            parts.append(draft.path(f"{_PARTS}/{start:08d}.jsonl"))
            if not parts[-1].exists():
                prompts = [lay_out(question) for question in batch]
                names = [[other.get(n, n) for n in prompt.image_ids] for prompt in prompts]
                shown = [[store.read(n) for n in own] if store else [] for own in names]
                said = answer(llava, [p.text for p in prompts], shown, how.max_tokens)
                write_jsonl(parts[-1], _records(key, batch, prompts, said))
            bar.advance(len(batch))
    write_jsonl(draft.path(PREDICTIONS), (row for part in parts for row in read_jsonl(part)))
    shutil.rmtree(draft.path(_PARTS), ignore_errors=True)
    cut = tell_cut(read_jsonl(draft.path(PREDICTIONS)), how.max_tokens)
    return draft.finish({"questions" if questions else "images": len(asked)}, **cut)


def _records(
    key: str, asked: Sequence[Question], prompts: Sequence[Prompt], said: Sequence[Answer]
) -> Iterator[dict[str, object]]:
    for question, prompt, one in zip(asked, prompts, said, strict=True):
        texts = {"text": one.text, "prompt": prompt.text}
        yield {key: question.question_id, **texts, **cut_mark(one.cut)}


def shuffle_images(questions: Sequence[Question]) -> dict[str, str]:
    """Name, for every image of the questions, the one that stands in for it; always the same one.

    The images change places in a ring, whose order is drawn once. So none stays where it was, and
    a question of several images still has different ones.

    Raises:
        ConfigError: there is only one image.
    """
    names = sorted({name for question in questions for name in question.image_ids})
    if len(names) == 1:
        raise ConfigError("shuffle_images needs two images or more, and the questions have one")
    random.Random(0).shuffle(names)
    return dict(zip(names, [*names[1:], *names[:1]], strict=True))


def _layout(questions: Artifact | None, prompt: str | None) -> Callable[[Question], Prompt]:
    """Return how questions are laid out: by the protocol of their data set, or as one prompt."""
    if questions is None:
        return lambda question: Prompt(f"{IMAGE}\n{prompt}", question.image_ids)
    if questions.manifest["config"].get("format") == "mmmu":
        return mmmu_prompt
    return lambda question: Prompt(question_prompt(question), question.image_ids)


def _asked(
    questions: Artifact | None, store: ImageStore | None, of: Collection[str] | None
) -> list[Question]:
    """Return the questions, or one without words for every image.

    Raises:
        DataError: an image of a question is missing.
        ConfigError: a question has images and none are given.
    """
    if questions is None:
        ids = [name for name in (store.ids if store else []) if of is None or name in of]
        return [Question(question_id=n, question="", answers=(), image_ids=(n,)) for n in ids]
    asked = list(read_questions(questions))
    for question in asked:
        if question.image_ids and store is None:
            raise ConfigError(f"question {question.question_id} has an image: give the images")
        missing = [name for name in question.image_ids if store is None or name not in store]
        if missing:
            raise DataError(
                f"question {question.question_id} has the image {missing[0]}, which is not among"
                " the images that are given"
            )
    return asked


def ask(
    vlm: Artifact, images: Sequence[Path], question: str, config: AskConfig | None = None
) -> str:
    """Answer one question about image files.

    Raises:
        DataError: a file is missing or not an image.
    """
    how = config or AskConfig()
    shown = [open_image(path) for path in images]
    prompt = "\n".join([*[IMAGE] * len(shown), question])
    llava = load_llava(vlm, resolve_device(how.device))
    (said,) = answer(llava, [prompt], [shown], how.max_tokens)
    tell_cut([cut_mark(said.cut)], how.max_tokens)
    return said.text
