"""The training corpus of the shipped models: rendered train scenes with captions, in shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmail_align.artifacts import Artifact, begin, write_bytes, write_json
from gmail_align.engine import Engine, Job, run_shards
from gmail_align.tabletop.render import render
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import captions

SHARD = 500
JPEG_QUALITY = 95
FIRST_SCENE = 1_000_000
"""The corpus takes train scenes from this index on, so that a demo's train scenes are new."""


@dataclass(frozen=True)
class Corpus:
    """Images (n, size, size, 3) uint8 and five captions each."""

    images: NDArray[np.uint8]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.captions)


def build_corpus(out: Path, count: int, *, size: int = 64, workers: int = 1) -> Artifact:
    """Render ``count`` train scenes into ``out``; finished shards are never redone."""
    draft = begin(out, "corpus", {"count": count, "size": size, "first": FIRST_SCENE})
    if draft.complete:
        return draft.complete
    job = Job(
        partial(_render_shard, out, size),
        lambda shard: _shard_paths(out, shard)[1].exists(),
        size=lambda shard: min(SHARD, count - shard * SHARD),
        label="rendering",
        unit="images",
    )
    run_shards(range(-(-count // SHARD)), job, Engine(workers=workers))
    return draft.finish({"images": count})


def read_corpus(folder: Path, shards: int | None = None) -> Corpus:
    """Load the finished shards of ``folder`` (at most ``shards`` of them)."""
    texts = sorted(folder.glob("captions-*.json"))[:shards]
    images = [np.load(folder / f"images-{path.stem[-5:]}.npy") for path in texts]
    lines = [row for path in texts for row in json.loads(path.read_text(encoding="utf-8"))]
    return Corpus(np.concatenate(images), lines)


def through_jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pass an image through the codec that every stored image passes through."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _shard_paths(out: Path, shard: int) -> tuple[Path, Path]:
    return out / f"images-{shard:05d}.npy", out / f"captions-{shard:05d}.json"


def _render_shard(out: Path, size: int, shard: int, advance: Callable[[int], None]) -> None:
    first = FIRST_SCENE + shard * SHARD
    scenes = [sample_scene(seed, "train") for seed in range(first, first + SHARD)]
    images = np.stack([through_jpeg(render(scene, size)) for scene in scenes])
    buffer = BytesIO()
    np.save(buffer, images)
    image_path, text_path = _shard_paths(out, shard)
    write_bytes(image_path, buffer.getvalue())
    write_json(text_path, [captions(scene) for scene in scenes])
    advance(SHARD)
