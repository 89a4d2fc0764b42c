"""The loss terms of one batch: images to features by their routes, features to terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gmail_align.alignment.chunked import chunked_alignment_loss
from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.losses import (
    Direction,
    directed_alignment_loss,
    distillation_loss,
    norm_loss,
)
from gmail_align.alignment.pairset import Batch
from gmail_align.alignment.text_loss import TextSide, text_loss_of
from gmail_align.alignment.tokens import embed_tokens
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.training.distributed import ranks

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
    texts: Float[Tensor, "b d"] | None = None
    """Captions by an adapted text tower; a frozen one's are in the batch."""
    short: Float[Tensor, "b d"] | None = None
    """The same of their first sentences."""


def loss_terms(
    encoder: GmailEncoder, batch: Batch, config: AlignConfig, log_scale: Tensor | None = None
) -> dict[str, Tensor]:
    """Return every term of non-zero weight, and ``total``, their weighted sum.

    Where frozen features are read, ``paired_cosine`` is the mean cosine of generated images and the
    frozen features of their real ones; nothing is minimised by it.

    Args:
        encoder: The encoder.
        batch: The batch, on the encoder's device.
        config: Weights and switches.
        log_scale: The learned ``ln(1 / temperature)`` of Eq. 1; the fixed temperature when None.
    """
    features = gathered(embed_batch(encoder, batch, config))
    return terms_of(features, batch, encoder, config, log_scale)


def embed_batch(
    encoder: GmailEncoder, batch: Batch, config: AlignConfig, part: slice | None = None
) -> Embedded:
    """Send a batch, or a part of its rows, through the encoder."""
    rows = part or slice(None)
    real = None if batch.real is None else batch.real[rows]
    images = embed_images(encoder, batch.generated[rows], real, config)
    texts, short = (
        None if table is None else embed_tokens(encoder, table[rows], config)
        for table in (batch.tokens, batch.short_tokens)
    )
    return replace(images, texts=texts, short=short)


def embed_images(
    encoder: GmailEncoder,
    generated: UInt8[Tensor, "b 3 s s"],
    real: UInt8[Tensor, "b 3 s s"] | None,
    config: AlignConfig,
) -> Embedded:
    """Send a batch's images through the encoder.

    Real and generated images share one pass through the trunk, unless they have trunks of their
    own; real ones are left out where no term needs them.
    """
    if real is not None and not encoder.shared:
        made, patches = adapted_tokens(encoder, generated, config)
        photos, _ = adapted_tokens(encoder, real, config, Route.REAL)
        return Embedded(
            encoder.project(made, Route.GENERATED), encoder.project(photos, Route.REAL), patches
        )
    images = generated if real is None else torch.cat([generated, real])
    pooled, patches = adapted_tokens(encoder, images, config)
    count = len(generated)
    return Embedded(
        encoder.project(pooled[:count], Route.GENERATED),
        encoder.project(pooled[count:], Route.REAL) if config.weights.needs_real else None,
        None if patches is None else patches[:count],
    )


def gathered(features: Embedded) -> Embedded:
    """Join the features of all processes; without others, return what is there."""
    here = ranks()
    if here.count == 1:
        return features
    joined: dict[str, Any] = {
        name: None if rows is None else here.gather(rows) for name, rows in vars(features).items()
    }
    return Embedded(**joined)


def terms_of(
    features: Embedded,
    batch: Batch,
    encoder: GmailEncoder,
    config: AlignConfig,
    log_scale: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the terms of features that are there already; see :func:`loss_terms`."""
    weights, generated = config.weights, features.generated
    text_loss = text_loss_of(encoder, config, chunk=config.loss_chunk)
    contrast = _Contrast(
        batch, config, config.temperature if log_scale is None else learned_temperature(log_scale)
    )
    terms: dict[str, Tensor] = {}
    if weights.align > 0:
        terms["align"] = contrast.eq1(generated, needed(batch.frozen), config.direction)
    if weights.text_generated > 0:
        terms["text_generated"] = text_loss(generated, text_side(batch, features))
    if weights.text_real > 0:
        terms["text_real"] = text_loss(needed(features.real), text_side(batch, features))
    if weights.distill_real > 0:
        terms["distill_real"] = distillation_loss(needed(features.real), needed(batch.frozen))
    if weights.distill_generated > 0:
        terms["distill_generated"] = distillation_loss(generated, needed(batch.frozen))
    if weights.norm > 0:
        terms["norm"] = norm_loss(generated, needed(batch.frozen))
    if weights.patch > 0:
        terms["patch"] = contrast.eq1(needed(features.patches), needed(batch.patches), "g2r")
    total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    return {**terms, "total": total, **_paired_cosine(generated.detach(), batch)}


def text_side(batch: Batch, features: Embedded) -> TextSide:
    """Return what the images of a batch are compared with by the text terms."""
    texts = needed(batch.texts) if features.texts is None else features.texts
    short = batch.short if features.short is None else features.short
    return TextSide(texts, batch.same, batch.groups, short, batch.same_short)


def _paired_cosine(generated: Tensor, batch: Batch) -> dict[str, Tensor]:
    if batch.frozen is None:
        return {}
    return {"paired_cosine": 1 - distillation_loss(generated, batch.frozen)}


@dataclass(frozen=True)
class _Contrast:
    """Eq. 1 of one batch, at once or in chunks."""

    batch: Batch
    config: AlignConfig
    temperature: float | Tensor

    def eq1(self, generated: Tensor, real: Tensor, direction: Direction) -> Tensor:
        chunk, positives = self.config.loss_chunk, self.config.positives
        if chunk is None:
            return directed_alignment_loss(
                generated,
                real,
                direction,
                temperature=self.temperature,
                same=self.batch.same,
                positives=positives,
            )
        return chunked_alignment_loss(
            generated,
            real,
            direction,
            temperature=self.temperature,
            groups=needed(self.batch.groups),
            positives=positives,
            chunk=chunk,
        )


def learned_temperature(log_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the temperature of a learned ``ln(1 / temperature)``, never below 0.01 (as CLIP)."""
    return torch.exp(-log_scale.clamp(max=_LARGEST_SCALE))


def adapted_tokens(
    encoder: GmailEncoder,
    images: UInt8[Tensor, "b 3 s s"],
    config: AlignConfig,
    route: Route = Route.GENERATED,
) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b width"] | None]:
    """Return the adapted trunk's output in fp32, and the mean patch token where a term needs it.

    The trunk computes in the configured precision.
    """
    pixels = encoder.preprocess.normalise(images)
    half = config.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        if config.weights.patch > 0:
            pooled, patches = encoder.trunk_and_patches(pixels, route)
            return pooled.float(), patches.float()
        return encoder.lean_trunk(pixels, route).float(), None


def needed(table: Tensor | None) -> Tensor:
    """Return what a batch holds; it was gathered for these terms."""
    assert table is not None, "the batch was gathered without what its terms need"
    return table
