"""What ClipCap is trained on: image features with their captions, as batches of a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from gmail_align.captioning.caption_set import CaptionSet
from gmail_align.captioning.captioner import PreparedTraining
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.clipcap.model import ClipCap, Scaling
from gmail_align.captioning.config import VALIDATION_BATCH
from gmail_align.captioning.decode import Decoding
from gmail_align.captioning.inputs import CaptionerData
from gmail_align.captioning.language import LanguageModel
from gmail_align.captioning.prompt import CaptionBatch
from gmail_align.captioning.provenance import (
    joint_provenance,
    provenance,
    require_one_encoder,
)
from gmail_align.data.batches import batch_indices
from gmail_align.errors import ConfigError
from gmail_align.runtime import resolve_device, stable_seed


def check(config: ClipCapConfig, data: CaptionerData) -> None:
    """Refuse images of different encoders.

    Raises:
        ConfigError: there are no images.
        DataError: features are of captions, or come from different encoders.
    """
    if not data.images:
        raise ConfigError("ClipCap is trained on images: give image features and captions")
    sets = [*data.images, *([data.validation] if data.validation else [])]
    encoder = provenance(data.images[0].features)["encoder"]
    require_one_encoder(encoder, [images.features for images in sets])


def prepare(
    config: ClipCapConfig, data: CaptionerData, language: LanguageModel, out: Path, seed: int
) -> PreparedTraining:
    """Read the captions, and put a freshly drawn mapper before the language model.

    Raises:
        DataError: a caption is empty, or features differ in width.
        ModelError: the language model has too few positions, or the mapper's heads do not divide
            its width.
    """
    language.require_positions(config.prefix_length, config.max_tokens)
    if config.shape.kind == "transformer":
        language.require_heads(config.shape.heads)
    end = not config.faults.untrained_end
    captions = CaptionSet.read(data.images, language, config.max_tokens, end=end)
    captioner = draw_captioner(config, data, language, captions, seed)
    held = (
        CaptionSet.read([data.validation], language, config.max_tokens, end=end)
        if data.validation
        else None
    )

    def batch(step: int, seed: int) -> CaptionBatch:
        rows = torch.from_numpy(batch_indices(step, config.batch_size, len(captions), seed))
        made = captions.batch(rows, captioner.prompt)
        if config.faults.zero_is_padding:
            made = made._replace(mask=made.mask & (made.input_ids != 0))
        return made

    def held_out() -> Iterator[CaptionBatch]:
        if held is not None:
            for rows in torch.arange(len(held)).split(VALIDATION_BATCH):
                yield held.batch(rows, captioner.prompt)

    counts = {"captions": len(captions), "images": len(captions.rows.unique())}
    return PreparedTraining(captioner, captions.tokens, counts, batch, held_out)


def draw_captioner(
    config: ClipCapConfig,
    data: CaptionerData,
    language: LanguageModel,
    captions: CaptionSet,
    seed: int,
) -> ClipCap:
    """Build an untrained captioner for the features of ``captions``."""
    norm = captions.mean_norm() if config.norm == "mean" else config.norm
    ends = (language.token_of("."),) if config.faults.end_at_full_stop else ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "mapper"))
        captioner = ClipCap(
            language,
            captions.width,
            config.shape,
            scaling=Scaling(config.normalise, norm, config.faults.norm_mismatch),
            tuned=config.trains_language_model,
            decoding=Decoding(beam=config.beam, max_tokens=config.max_tokens, ends=ends),
            identity=joint_provenance(images.features for images in data.images),
        )
    captioner.to(resolve_device(config.device)).train()
    return captioner
