"""One shard of generated images: captions in, a tar and its sidecar out.

Each finished batch is kept as a small shard of its own in ``shards/00007.parts/`` until the whole
is written, so a run that was killed makes at most the batches in work again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmail_align.artifacts import Artifact
from gmail_align.data.captions import CAPTIONS
from gmail_align.data.decode import encode
from gmail_align.data.images import (
    ImageRecord,
    Quarantined,
    Sample,
    read_shard,
    shard_name,
    write_shard,
)
from gmail_align.data.pairs import generated_id
from gmail_align.errors import ArtifactError, DataError, ModelError
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.noise import image_seed
from gmail_align.synthesis.pipelines import load_pipeline
from gmail_align.synthesis.safety import unsafe
from gmail_align.synthesis.sampler import Pixels, Request, Sampler
from gmail_align.synthesis.weights import find_pipeline, weights_fingerprint

PARTS: Final = ".parts"
_UNSAFE: Final = "the safety checker objects to the image"

Part = tuple[list[Sample], list[Quarantined]]
"""Samples, and what was left out."""


@dataclass(frozen=True)
class Shard:
    """Some captions that stand next to each other in their file."""

    index: int
    start: int
    """Byte at which the first of them begins."""
    captions: int

    def __str__(self) -> str:
        return shard_name(self.index)


@dataclass(frozen=True)
class Origin:
    """The generator's name, its revision and the fingerprint of its weights."""

    generator: str
    revision: str
    weights: str


def split_captions(captions: Artifact, size: int) -> list[Shard]:
    """Cut a ``captions`` artifact into shards of ``size`` captions, by their place in the file."""
    shards: list[Shard] = []
    start = end = count = 0
    with captions.path(CAPTIONS).open("rb") as file:
        for line in file:
            end += len(line)
            count += 1
            if count == size:
                shards.append(Shard(len(shards), start, count))
                start, count = end, 0
    return [*shards, Shard(len(shards), start, count)] if count else shards


@dataclass
class ShardMaker:
    """Makes shards; the generator is loaded for the first and kept."""

    config: SynthesisConfig
    captions: Path
    """The captions' file."""
    out: Path
    """Folder of the artifact."""
    origin: Origin
    batch_size: int

    def __call__(self, shard: Shard, advance: Callable[[int], None]) -> None:
        """Generate the images of one shard and write it."""
        path = self.out / shard_name(shard.index)
        requests = self._requests(shard)
        starts = range(0, len(requests), self.batch_size)
        parts: list[Part | Future[Part]] = []
        with ThreadPoolExecutor(self.config.writers) as pool:
            for start in starts:
                batch = requests[start : start + self.batch_size]
                place = part_path(path, start) if len(starts) > 1 else None
                kept = place and read_part(place, len(batch))
                if not kept:
                    _wait_for_room(parts, self.config.writers)
                    pixels = Pixels(self._sampler(batch))
                parts.append(kept or pool.submit(self._keep, place, batch, pixels))
                advance(len(batch))
        whole = [part.result() if isinstance(part, Future) else part for part in parts]
        write_shard(path, *_joined(whole))
        shutil.rmtree(path.with_suffix(PARTS), ignore_errors=True)

    def done(self, shard: Shard) -> bool:
        """Tell whether a shard is written."""
        return read_shard(self.out / shard_name(shard.index)) is not None

    def size(self, shard: Shard) -> int:
        """Return how many images a shard has."""
        return shard.captions * self.config.images_per_caption

    @cached_property
    def _pipeline(self) -> Any:
        """The generator, on this process's device.

        Raises:
            ModelError: it is another one here than where the run was begun.
        """
        folder = find_pipeline(self.config.model, self.config.revision, self.config.variant)
        weights = weights_fingerprint(folder, self.config.variant)
        if weights != self.origin.weights:
            raise ModelError(
                f"{folder} on this machine has the weights {weights}, but the run was begun with "
                f"{self.origin.weights}: put the same generator on every machine"
            )
        return load_pipeline(folder, self.config)

    @cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self._pipeline, self.config, self.batch_size)

    def _requests(self, shard: Shard) -> list[Request]:
        with self.captions.open("rb") as file:
            file.seek(shard.start)
            try:
                rows = [json.loads(file.readline()) for _ in range(shard.captions)]
                pairs = [(str(row["caption_id"]), str(row["text"])) for row in rows]
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(
                    f"{self.captions} is damaged ({error}): make the captions again"
                ) from error
        numbers = range(self.config.images_per_caption)
        return [Request(name, k, text) for name, text in pairs for k in numbers]

    def _keep(self, place: Path | None, requests: Sequence[Request], pixels: Pixels) -> Part:
        """Encode a batch, in a thread, and keep it on disk when it has a place there."""
        images, finite = pixels.wait()
        verdicts = unsafe(self._pipeline, images)
        samples: list[Sample] = []
        left_out: list[Quarantined] = []
        for row, request in enumerate(requests):
            record = self._record(request, images.shape[2], images.shape[1], verdicts[row])
            try:
                if record.unsafe and self.config.safety == "drop":
                    raise DataError(_UNSAFE)
                image = to_image(images[row].numpy(), bool(finite[row]))
            except DataError as error:
                left_out.append(Quarantined(record.id, str(error)))
            else:
                data = encode(image, self.config.image_format, self.config.quality)
                samples.append((record, data))
        if place:
            write_shard(place, samples, left_out)
        return samples, left_out

    def _record(
        self, request: Request, width: int, height: int, verdict: bool | None
    ) -> ImageRecord:
        return ImageRecord(
            id=generated_id(request.caption_id, request.k),
            width=width,
            height=height,
            source="generated",
            generator=self.origin.generator,
            revision=self.origin.revision,
            seed=image_seed(self.config.seed, request.caption_id, request.k),
            prompt=request.prompt,
            weights=self.origin.weights,
            scheduler=self._sampler.scheduler,
            steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            unsafe=verdict,
        )


def to_image(pixels: npt.NDArray[np.uint8], finite: bool = True) -> Image.Image:
    """Turn rows of 8-bit RGB into an image.

    Raises:
        DataError: a value was not finite, or all pixels are alike.
    """
    if not finite:
        raise DataError("the generator gave values that are not finite")
    if int(np.ptp(pixels.reshape(-1, 3), axis=0).max()) <= 1:
        raise DataError("the generator gave a blank image")
    return Image.fromarray(pixels)


def part_path(shard: Path, start: int) -> Path:
    """Return where the batch that begins with image ``start`` of a shard is kept."""
    return shard.with_suffix(PARTS) / f"{start:06d}.tar"


def read_part(path: Path, count: int) -> Part | None:
    """Return a batch that is kept on disk; None when it is not, or is not of ``count`` images."""
    found = read_shard(path)
    if found is None or len(found[0]) + len(found[1]) != count:
        return None
    data = path.read_bytes()
    samples = [
        (replace(record, shard=-1), data[record.offset : record.offset + record.size])
        for record in found[0]
    ]
    intact = all(hashlib.sha256(image).hexdigest() == record.sha256 for record, image in samples)
    return (samples, found[1]) if intact else None


def _joined(parts: Sequence[Part]) -> Part:
    samples = [sample for part in parts for sample in part[0]]
    return samples, [entry for part in parts for entry in part[1]]


def _wait_for_room(parts: Sequence[Part | Future[Part]], ahead: int) -> None:
    """Wait until fewer than ``ahead`` + 1 batches are unwritten; raise what a thread raised."""
    pending = [part for part in parts if isinstance(part, Future)]
    for part in pending[: max(0, len(pending) - ahead)]:
        part.result()
