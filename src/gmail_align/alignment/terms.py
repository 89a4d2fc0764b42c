"""The loss terms of one batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.losses import (
    contrastive_text_loss,
    directed_alignment_loss,
    distillation_loss,
)
from gmail_align.alignment.pairset import Batch
from gmail_align.encoders.clip import GmailEncoder
from gmail_align.encoders.route import Route


def loss_terms(encoder: GmailEncoder, batch: Batch, config: AlignConfig) -> dict[str, Tensor]:
    """Return every term of non-zero weight, and ``total``, their weighted sum.

    Real and generated images share one pass through the trunk; real ones are left out of it when no
    term needs them.
    """
    images = batch.generated if batch.real is None else torch.cat([batch.generated, batch.real])
    pooled = adapted_trunk(encoder, images, config)
    count = len(batch.generated)
    generated = encoder.project(pooled[:count], Route.GENERATED)
    terms: dict[str, Tensor] = {}
    weights = config.weights
    if weights.align > 0:
        terms["align"] = directed_alignment_loss(
            generated,
            _needed(batch.frozen),
            config.direction,
            temperature=config.temperature,
            same=batch.same,
        )
    scale = encoder.logit_scale
    if weights.text_generated > 0:
        terms["text_generated"] = contrastive_text_loss(generated, batch.texts, scale, batch.same)
    if weights.needs_real:
        real = encoder.project(pooled[count:], Route.REAL)
        if weights.text_real > 0:
            terms["text_real"] = contrastive_text_loss(real, batch.texts, scale, batch.same)
        if weights.distill_real > 0:
            terms["distill_real"] = distillation_loss(real, _needed(batch.frozen))
    total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    return {**terms, "total": total}


def adapted_trunk(
    encoder: GmailEncoder, images: UInt8[Tensor, "b 3 s s"], config: AlignConfig
) -> Float[Tensor, "b width"]:
    """Return the adapted trunk's output in fp32, computed in the configured precision."""
    pixels = encoder.preprocess.normalise(images)
    half = config.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        pooled = encoder.lean_trunk(pixels, Route.GENERATED)
    return pooled.float()


def _needed(table: Tensor | None) -> Tensor:
    assert table is not None, "the batch was gathered without what its terms need"
    return table
