"""The stage: write a world to disk in COCO's layout, once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.artifacts import Artifact, begin
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.tabletop.classes import class_label, class_prompts, class_sets
from gmail_align.tabletop.scenes import Scene
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
