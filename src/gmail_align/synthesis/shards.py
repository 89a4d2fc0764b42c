"""One shard of generated images: captions in, a tar and its sidecar out.

Each finished batch is kept as a small shard of its own in ``shards/00007.parts/`` until the whole
is written, so a run that was killed repeats at most the batches that it was making.
"""

from __future__ import annotations

import hashlib
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
from gmail_align.data.captions import CaptionShard
from gmail_align.data.decode import encode
from gmail_align.data.ids import numbered
from gmail_align.data.images import (
    ImageRecord,
    Quarantined,
    Sample,
    read_shard,
    shard_files,
    shard_name,
    write_shard,
)
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import find_folder
from gmail_align.encoders.route import Route
from gmail_align.errors import DataError, ModelError
from gmail_align.metrics.clipscore import clip_score
from gmail_align.mirror import Mirror
from gmail_align.runtime import resolve_device
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.pipelines import load_pipeline, unsafe
from gmail_align.synthesis.sampler import Pixels, Request, Sampler, image_seed
from gmail_align.synthesis.weights import find_pipeline, weights_fingerprint

PARTS: Final = ".parts"
_UNSAFE: Final = "the safety checker objects to the image"

Outcome = tuple[list[Sample], list[Quarantined]]
"""Images that were kept, and those that were left out."""


@dataclass(frozen=True)
class Generator:
    """The generator's name, its revision and the fingerprint of its weights."""

    name: str
    revision: str
    weights: str
    adapter: str | None = None
    """Fingerprint of the LoRA that is added to the weights."""


@dataclass
class ShardMaker:
    """Makes shards; the generator is loaded for the first and kept."""

    config: SynthesisConfig
    captions: Artifact
    out: Path
    """Folder of the artifact."""
    generator: Generator
    batch_size: int
    mirror: Mirror | None = None
    """Gets each shard, and has those that this machine lacks."""

    def __call__(self, shard: CaptionShard, advance: Callable[[int], None]) -> None:
        """Generate the images of one shard and write it."""
        path = self.out / shard_name(shard.index)
        numbers = range(self.config.images_per_caption * self.config.best_of)
        captions = shard.read(self.captions)
        requests = [Request(one.caption_id, k, one.text) for one in captions for k in numbers]
        starts = range(0, len(requests), self.batch_size)
        parts: list[Outcome | Future[Outcome]] = []
        with ThreadPoolExecutor(self.config.writers) as pool:
            for start in starts:
                batch = requests[start : start + self.batch_size]
                place = path.with_suffix(PARTS) / f"{start:06d}.tar" if len(starts) > 1 else None
                kept = place and read_part(place, len(batch))
                if not kept:
                    _wait_for_room(parts, self.config.writers)
                    pixels = Pixels(self._sampler(batch))
                    cut = self._sampler.tokens_cut(batch)
                parts.append(kept or pool.submit(self._keep, place, batch, pixels, cut))
                advance(len(batch))
        whole = [part.result() if isinstance(part, Future) else part for part in parts]
        samples, left_out = _joined(whole)
        if self.config.best_of > 1:
            samples, left_out = best_candidates(requests, samples, left_out, self.config.best_of)
        write_shard(path, samples, left_out)
        if self.mirror is not None:
            self.mirror.push(self.out, shard_files(shard.index))
        shutil.rmtree(path.with_suffix(PARTS), ignore_errors=True)

    def done(self, shard: CaptionShard) -> bool:
        """Tell whether a shard is written, here or in the mirror, from where it is taken."""
        path = self.out / shard_name(shard.index)
        if read_shard(path) is None and self.mirror is not None:
            self.mirror.pull(self.out, shard_files(shard.index))
        return read_shard(path) is not None

    def size(self, shard: CaptionShard) -> int:
        """Return how many images are generated for a shard, candidates included."""
        return shard.count * self.config.images_per_caption * self.config.best_of

    @cached_property
    def _pipeline(self) -> Any:
        """The generator, on this process's device."""
        folder = find_pipeline(self.config.model, self.config.revision, self.config.variant)
        weights = weights_fingerprint(folder, self.config.variant)
        if weights != self.generator.weights:
            raise ModelError(
                f"{folder} on this machine has the weights {weights}, but the run was begun with "
                f"{self.generator.weights}: put the same generator on every machine"
            )
        return load_pipeline(folder, self.config)

    @cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self._pipeline, self.config, self.batch_size)

    @cached_property
    def _judge(self) -> GmailEncoder:
        encoder = GmailEncoder.from_pretrained(find_folder(self.config.judge))
        return encoder.to(resolve_device(self.config.device))

    def _keep(
        self, place: Path | None, requests: Sequence[Request], pixels: Pixels, cut: Sequence[int]
    ) -> Outcome:
        """Encode a batch, in a thread, and keep it on disk when it has a place there."""
        images, finite = pixels.wait()
        verdicts = unsafe(self._pipeline, images)
        drawn: list[tuple[ImageRecord, Image.Image]] = []
        left_out: list[Quarantined] = []
        for row, request in enumerate(requests):
            record = self._record(request, images.shape[2], images.shape[1])
            record = replace(record, unsafe=verdicts[row], tokens_cut=cut[row] or None)
            try:
                if record.unsafe and self.config.safety == "drop":
                    raise DataError(_UNSAFE)
                drawn.append((record, to_image(images[row].numpy(), bool(finite[row]))))
            except DataError as error:
                left_out.append(Quarantined(record.id, str(error)))
        form, quality = self.config.image_format, self.config.quality
        samples = [
            (record, encode(image, form, quality, generated=True))
            for record, image in self._judged(drawn)
        ]
        if place:
            write_shard(place, samples, left_out)
        return samples, left_out

    def _judged(
        self, drawn: Sequence[tuple[ImageRecord, Image.Image]]
    ) -> Sequence[tuple[ImageRecord, Image.Image]]:
        """Note the CLIPScore of each image where there are candidates to choose from."""
        if self.config.best_of == 1 or not drawn:
            return drawn
        features = self._judge.encode_images([image for _, image in drawn], Route.FROZEN)
        texts = self._judge.encode_texts([record.prompt for record, _ in drawn], Route.FROZEN)
        scores = clip_score(features.cpu().double().numpy(), texts.cpu().double().numpy())
        return [
            (replace(record, clip_scores=[float(score)]), image)
            for (record, image), score in zip(drawn, scores, strict=True)
        ]

    def _record(self, request: Request, width: int, height: int) -> ImageRecord:
        return ImageRecord(
            id=numbered(request.caption_id, request.k),
            width=width,
            height=height,
            source="generated",
            generator=self.generator.name,
            revision=self.generator.revision,
            seed=image_seed(self.config.seed, request.caption_id, request.k),
            prompt=request.prompt,
            weights=self.generator.weights,
            adapter=self.generator.adapter,
            scheduler=self._sampler.scheduler,
            steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
        )


def best_candidates(
    requests: Sequence[Request],
    samples: Sequence[Sample],
    left_out: Sequence[Quarantined],
    count: int,
) -> Outcome:
    """Keep the best of every ``count`` candidates in a row, the first of equally good ones.

    An image is left out where all its candidates are. ``clip_scores`` of an image that is kept
    holds the scores of its candidates in their order.
    """
    made = {record.id: (record, data) for record, data in samples}
    reasons = {entry.id: entry.reason for entry in left_out}
    best: list[Sample] = []
    missing: list[Quarantined] = []
    for row in range(0, len(requests), count):
        names = [numbered(one.caption_id, one.k) for one in requests[row : row + count]]
        name = numbered(requests[row].caption_id, requests[row].k // count)
        candidates = [made[own] for own in names if own in made]
        if not candidates:
            missing.append(Quarantined(name, reasons[names[0]]))
            continue
        scores = [score for record, _ in candidates for score in record.clip_scores or ()]
        record, data = candidates[scores.index(max(scores))]
        best.append((replace(record, id=name, clip_scores=scores), data))
    return best, missing


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


def read_part(path: Path, count: int) -> Outcome | None:
    """Return a batch that is kept on disk; None when it is not, or is not of ``count`` images."""
    shard = read_shard(path)
    if shard is None or len(shard[0]) + len(shard[1]) != count:
        return None
    data = path.read_bytes()
    samples = [
        (replace(record, shard=-1), data[record.offset : record.offset + record.size])
        for record in shard[0]
    ]
    intact = all(hashlib.sha256(image).hexdigest() == record.sha256 for record, image in samples)
    return (samples, shard[1]) if intact else None


def _joined(parts: Sequence[Outcome]) -> Outcome:
    samples = [sample for part in parts for sample in part[0]]
    return samples, [entry for part in parts for entry in part[1]]


def _wait_for_room(parts: Sequence[Outcome | Future[Outcome]], ahead: int) -> None:
    """Wait until fewer than ``ahead`` + 1 batches are unwritten; raise what a thread raised."""
    pending = [part for part in parts if isinstance(part, Future)]
    for part in pending[: max(0, len(pending) - ahead)]:
        part.result()
