"""The stage: conversations about one side of pairs, about real images or about generated ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gmail_align.artifacts import Artifact, begin, write_jsonl
from gmail_align.data.pairs import Pair, iter_pairs
from gmail_align.errors import DataError
from gmail_align.vlm.conversations import CONVERSATIONS, IMAGE, Turn, read_conversations

Side = Literal["real", "generated"]
TurnsOf = Callable[[Pair], Sequence[Turn]]
"""The questions about a pair's image, with their answers."""


def write_instructions(
    pairs: Artifact,
    side: Side,
    out: Path,
    *,
    prompt: str | None = None,
    asked: TurnsOf | None = None,
    inputs: Mapping[str, Artifact | str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write one conversation for every pair; returns an artifact of kind ``conversations``.

    Args:
        pairs: Captions with their real and generated images.
        side: Which image of a pair is talked about.
        out: Folder of the conversations.
        prompt: Asks for the caption, at a place in the conversation that the caption's id decides.
        asked: Further questions.
        inputs: What ``asked`` reads, by role.
        settings: What ``asked`` depends on besides.

    Raises:
        DataError: nothing is said about any image.
    """
    identity = {"side": side, "prompt": prompt, **(settings or {})}
    draft = begin(out, CONVERSATIONS, identity, {"pairs": pairs, **(inputs or {})})
    if draft.complete is not None:
        return draft.complete
    rows: list[dict[str, Any]] = []
    for pair in iter_pairs(pairs):
        turns = list(asked(pair)) if asked else []
        if prompt is not None:
            place = random.Random(pair.caption_id).randrange(len(turns) + 1)
            turns.insert(place, Turn(prompt, pair.text))
        if turns:
            image = pair.real_image_id if side == "real" else pair.generated_image_id
            rows.append(_row(image, len(rows), turns))
    if not rows:
        raise DataError(f"nothing is asked about the images of {pairs.folder}: choose captions too")
    write_jsonl(draft.path(f"{CONVERSATIONS}.jsonl"), rows)
    return draft.finish({"conversations": len(rows), "images": len({row["image"] for row in rows})})


def _row(image: str, number: int, turns: Iterable[Turn]) -> dict[str, Any]:
    said: list[dict[str, str]] = []
    for turn in turns:
        start = "" if said else f"{IMAGE}\n"
        said.append({"from": "human", "value": start + turn.prompt})
        said.append({"from": "gpt", "value": str(turn.answer)})
    return {"id": f"{image}:{number}", "image": image, "conversations": said}


def talks_of(path: Path) -> TurnsOf:
    """Return the turns of a file in LLaVA's format, whose samples each have one real image.

    The first pair of a real image gets all its turns.

    Raises:
        DataError: the file cannot be read, or a sample does not have one image.
    """
    turns: dict[str, list[Turn]] = {}
    for sample in read_conversations(path):
        if len(sample.image_ids) != 1:
            raise DataError(
                f"sample {sample.sample_id} of {path} has {len(sample.image_ids)} images, and a"
                " recipe needs one: remove the sample"
            )
        plain = [Turn(one.prompt.replace(IMAGE, "").strip(), one.answer) for one in sample.turns]
        turns.setdefault(sample.image_ids[0], []).extend(plain)
    return lambda pair: turns.pop(pair.real_image_id, [])
