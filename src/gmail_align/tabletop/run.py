"""The stage: write a world to disk in COCO's layout, once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, write_jsonl
from gmail_align.data.questions import ANSWER_BY_PHRASE, QUESTIONS
from gmail_align.data.questions import Question as Stored
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.tabletop.classes import class_label, class_prompts, class_sets
from gmail_align.tabletop.conversations import asked_of
from gmail_align.tabletop.scenes import Scene
from gmail_align.tabletop.text import caption_facts, captions
from gmail_align.tabletop.world import write_coco


def make_world(
    counts: Mapping[str, int], out: Path, *, size: int = 64, workers: int = 1
) -> Artifact:
    """Draw ``counts`` (split -> images) scenes; an artifact of kind ``world`` in COCO's layout."""
    draft = begin(out, "world", {"counts": dict(counts), "size": size})
    if draft.complete:
        return draft.complete
    for split, count in counts.items():
        write_coco(out, split, count, size=size, workers=workers)
    return draft.finish({"images": sum(counts.values())})


def read_scenes(world: Artifact, split: str) -> dict[str, Scene]:
    """Return image id -> ground truth."""
    rows = json.loads(world.path(f"scenes_{split}.json").read_text(encoding="utf-8"))
    return {name: Scene.from_dict(row["scene"]) for name, row in rows.items()}


def caption_questions(
    world: Artifact, split: str, most: int
) -> Callable[[str, str], list[tuple[str, str]]]:
    """Return what draws prompts, with their answers, that a caption of an image answers.

    It takes the image's id and the caption.
    """
    scenes = read_scenes(world, split)

    def draw(image: str, caption: str) -> list[tuple[str, str]]:
        scene, rng = scenes[image], random.Random(f"asked:{image}:{caption}")
        facts = dict(zip(captions(scene), caption_facts(scene), strict=True)).get(caption)
        asked = [] if facts is None else asked_of(scene, rng, most, facts)
        return [(f"{one.question}\n\n{ANSWER_BY_PHRASE}", one.right) for one in asked]

    return draw


def write_questions(world: Artifact, split: str, each: int, out: Path) -> Artifact:
    """Write ``each`` questions about every scene; an artifact of kind ``questions``.

    Answers are read by MMMU's rule for open questions, and a question's id names its subject.
    """
    config = {"format": "mmmu", "split": split, "each": each}
    draft = begin(out, "questions", config, {"world": world})
    if draft.complete:
        return draft.complete
    rows = [
        asdict(
            Stored(
                question_id=f"{split}_{one.subject}_{image}{number:02d}",
                question=one.question,
                answers=(one.right,),
                image_ids=(image,),
                groups=(one.subject,),
                split=split,
            )
        )
        for image, scene in read_scenes(world, split).items()
        for number, one in enumerate(asked_of(scene, random.Random(f"asked:{image}"), each))
    ]
    write_jsonl(draft.path(QUESTIONS), rows)
    return draft.finish({"questions": len(rows)})


def zero_shot_labels(scenes: Mapping[str, Scene], set_name: str) -> dict[str, int]:
    """Return image id -> class for the images whose class is beyond doubt."""
    labels = {name: class_label(scene, set_name) for name, scene in scenes.items()}
    return {name: label for name, label in labels.items() if label is not None}


def class_features(encoder: GmailEncoder, set_name: str) -> Float[Tensor, "classes prompts dim"]:
    """Embed the prompts of every class; classes with fewer prompts repeat theirs.

    Repeating changes nothing where each class's count divides the largest one, and weighs a class's
    prompts slightly unevenly elsewhere.
    """
    prompts = [class_prompts(set_name, name) for name in class_sets()[set_name]]
    most = max(map(len, prompts))
    even = [(own * -(-most // len(own)))[:most] for own in prompts]
    flat = encoder.encode_texts([text for own in even for text in own])
    return torch.stack(list(flat.split(most)))
