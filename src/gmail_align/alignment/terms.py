"""The loss terms of one batch: images to features by their routes, features to terms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.losses import (
    alignment_loss,
    contrastive_text_loss,
    directed_alignment_loss,
    distillation_loss,
    norm_loss,
)
from gmail_align.alignment.pairset import Batch
from gmail_align.encoders.clip import GmailEncoder
from gmail_align.encoders.route import Route

_LARGEST_SCALE = math.log(100.0)


@dataclass(frozen=True)
class Embedded:
    """Features of one batch in fp32, not normalised; None where no term needs them."""

    generated: Float[Tensor, "b d"]
    """Generated images by the ``generated`` route."""
    real: Float[Tensor, "m d"] | None = None
    """Real images by the ``real`` route."""
    patches: Float[Tensor, "b width"] | None = None
    """Means of the adapted patch tokens of generated images."""


def loss_terms(
    encoder: GmailEncoder, batch: Batch, config: AlignConfig, log_scale: Tensor | None = None
) -> dict[str, Tensor]:
    """Return every term of non-zero weight, and ``total``, their weighted sum.

    Args:
        encoder: The encoder.
        batch: The batch, on the encoder's device.
        config: Weights and switches.
        log_scale: The learned ``ln(1 / temperature)`` of Eq. 1; the fixed temperature when None.
    """
    return terms_of(embed_batch(encoder, batch, config), batch, encoder, config, log_scale)


def embed_batch(encoder: GmailEncoder, batch: Batch, config: AlignConfig) -> Embedded:
    """Send a batch through the encoder.

    Real and generated images share one pass through the trunk; real ones are left out of it when no
    term needs them.
    """
    images = batch.generated if batch.real is None else torch.cat([batch.generated, batch.real])
    pooled, patches = adapted_tokens(encoder, images, config)
    count = len(batch.generated)
    return Embedded(
        encoder.project(pooled[:count], Route.GENERATED),
        encoder.project(pooled[count:], Route.REAL) if config.weights.needs_real else None,
        None if patches is None else patches[:count],
    )


def terms_of(
    features: Embedded,
    batch: Batch,
    encoder: GmailEncoder,
    config: AlignConfig,
    log_scale: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the terms of features that are there already; see :func:`loss_terms`."""
    weights, scale, generated = config.weights, encoder.logit_scale, features.generated
    temperature = config.temperature if log_scale is None else learned_temperature(log_scale)
    same, positives = batch.same, config.positives
    terms: dict[str, Tensor] = {}
    if weights.align > 0:
        terms["align"] = directed_alignment_loss(
            generated,
            _needed(batch.frozen),
            config.direction,
            temperature=temperature,
            same=same,
            positives=positives,
        )
    if weights.text_generated > 0:
        terms["text_generated"] = contrastive_text_loss(
            generated, batch.texts, scale, same, positives
        )
    if weights.text_real > 0:
        real = _needed(features.real)
        terms["text_real"] = contrastive_text_loss(real, batch.texts, scale, same, positives)
    if weights.distill_real > 0:
        terms["distill_real"] = distillation_loss(_needed(features.real), _needed(batch.frozen))
    if weights.distill_generated > 0:
        terms["distill_generated"] = distillation_loss(generated, _needed(batch.frozen))
    if weights.norm > 0:
        terms["norm"] = norm_loss(generated, _needed(batch.frozen))
    if weights.patch > 0:
        terms["patch"] = alignment_loss(
            _needed(features.patches),
            _needed(batch.patches),
            temperature=temperature,
            same=same,
            positives=positives,
        )
    total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    return {**terms, "total": total}


def learned_temperature(log_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the temperature of a learned ``ln(1 / temperature)``, never below 0.01 (as CLIP)."""
    return torch.exp(-log_scale.clamp(max=_LARGEST_SCALE))


def adapted_tokens(
    encoder: GmailEncoder, images: UInt8[Tensor, "b 3 s s"], config: AlignConfig
) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b width"] | None]:
    """Return the adapted trunk's output in fp32, and the mean patch token where a term needs it.

    The trunk computes in the configured precision.
    """
    pixels = encoder.preprocess.normalise(images)
    half = config.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        if config.weights.patch > 0:
            pooled, patches = encoder.trunk_and_patches(pixels, Route.GENERATED)
            return pooled.float(), patches.float()
        return encoder.lean_trunk(pixels, Route.GENERATED).float(), None


def _needed(table: Tensor | None) -> Tensor:
    assert table is not None, "the batch was gathered without what its terms need"
    return table
