"""The stage: captions become generated images, shard by shard, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gmail_align.artifacts import Artifact, Draft, begin
from gmail_align.data.captions import Caption, iter_captions
from gmail_align.data.decode import encode
from gmail_align.data.images import (
    ImageRecord,
    Quarantined,
    Sample,
    check_quarantine,
    finish_images,
    read_shard,
    shard_name,
    write_shard,
)
from gmail_align.data.pairs import generated_id
from gmail_align.errors import ArtifactError, DataError
from gmail_align.progress import Progress, progress
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.noise import image_seed
from gmail_align.synthesis.pipelines import Request, Sampler, choose_dtype, load_pipeline
from gmail_align.synthesis.weights import find_pipeline, weights_fingerprint

_ELSEWHERE = {
    "model",
    "revision",
    "variant",
    "device",
    "batch_size",
    "limit_quarantine",
    "seed",
}
"""Settings that change rounding at most, or are recorded by name, fingerprint or seed."""


@dataclass(frozen=True)
class _Origin:
    """The generator's name and the fingerprint of its weights."""

    generator: str
    revision: str


def synthesize(config: SynthesisConfig, captions: Artifact, out: Path) -> Artifact:
    """Generate images from captions.

    Image ``{caption id}-{k}`` depends on the weights, the settings, the seed, the caption and
    ``k`` alone; a run that was killed goes on with the first shard that is missing. Batch size and
    device are no part of the artifact's identity: they change rounding at most, and a run may go
    on with others.

    Args:
        config: Generator and settings.
        captions: The captions.
        out: Output folder.

    Returns:
        The ``images`` artifact.

    Raises:
        ModelError: the generator cannot be found, loaded or sampled.
        DataError: too many images are blank or not finite.
        ArtifactError: the input holds no captions, or the folder belongs to another run.
    """
    if captions.kind != "captions":
        raise ArtifactError(
            f"{captions.folder} holds {captions.kind}, but captions are needed here"
        )
    folder = find_pipeline(config.model, config.revision, config.variant)
    local = Path(config.model).expanduser().exists()
    origin = _Origin(
        folder.resolve().name if local else config.model,
        weights_fingerprint(folder, config.variant),
    )
    inputs: dict[str, Artifact | str] = {"captions": captions, "weights": origin.revision}
    draft = begin(out, "images", _identity(config, origin), inputs, config.seed)
    if draft.complete:
        return draft.complete
    total = captions.counts["captions"] * config.images_per_caption
    size = min(config.batch_size, config.shard_size * config.images_per_caption, max(total, 1))
    sampler = Sampler(load_pipeline(folder, config), config, size)
    _make_shards(draft, sampler, config, captions, origin)
    return finish_images(draft, limit_quarantine=config.limit_quarantine, batch_size=size)


def _identity(config: SynthesisConfig, origin: _Origin) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude=_ELSEWHERE)
    dtype = str(choose_dtype(config)).removeprefix("torch.")
    return {**settings, "dtype": dtype, "model": origin.generator}


def _make_shards(
    draft: Draft, sampler: Sampler, config: SynthesisConfig, captions: Artifact, origin: _Origin
) -> None:
    total = captions.counts["captions"] * config.images_per_caption
    finished = {path.stem for path in draft.path("shards").glob("*.jsonl")}
    done = min(total, len(finished) * config.shard_size * config.images_per_caption)
    left_out: list[Quarantined] = []
    with progress("synthesize", total, "images", done) as bar:
        for index, chunk in enumerate(_chunks(captions, config.shard_size)):
            path = draft.path(shard_name(index))
            shard = read_shard(path)
            if shard is None:
                samples, bad = _make_shard(sampler, config, chunk, origin, bar)
                write_shard(path, samples, bad)
            left_out.extend(bad if shard is None else shard[1])
            check_quarantine(left_out, total, config.limit_quarantine)


def _make_shard(
    sampler: Sampler,
    config: SynthesisConfig,
    captions: Sequence[Caption],
    origin: _Origin,
    bar: Progress,
) -> tuple[list[Sample], list[Quarantined]]:
    requests = [
        Request(caption.caption_id, k, caption.text)
        for caption in captions
        for k in range(config.images_per_caption)
    ]
    samples: list[Sample] = []
    left_out: list[Quarantined] = []
    for start in range(0, len(requests), sampler.batch_size):
        batch = requests[start : start + sampler.batch_size]
        for request, pixels in zip(batch, sampler(batch), strict=True):
            try:
                samples.append(_sample(request, pixels, config, origin))
            except DataError as error:
                left_out.append(
                    Quarantined(generated_id(request.caption_id, request.k), str(error))
                )
        bar.advance(len(batch))
    return samples, left_out


def _sample(
    request: Request, pixels: Float[Tensor, "3 h w"], config: SynthesisConfig, origin: _Origin
) -> Sample:
    record = ImageRecord(
        id=generated_id(request.caption_id, request.k),
        width=pixels.shape[2],
        height=pixels.shape[1],
        source="generated",
        generator=origin.generator,
        revision=origin.revision,
        seed=image_seed(config.seed, request.caption_id, request.k),
        prompt=request.prompt,
    )
    return record, encode(to_image(pixels), config.image_format, config.quality)


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Turn values in [0, 1] into an 8-bit image.

    Raises:
        DataError: a value is not finite, or all pixels are alike.
    """
    if not bool(torch.isfinite(pixels).all()):
        raise DataError("the generator gave values that are not finite")
    array = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    if int(np.ptp(array.reshape(-1, 3), axis=0).max()) <= 1:
        raise DataError("the generator gave a blank image")
    return Image.fromarray(array)


def _chunks(captions: Artifact, size: int) -> Iterator[list[Caption]]:
    rows = iter_captions(captions)
    while chunk := list(islice(rows, size)):
        yield chunk
