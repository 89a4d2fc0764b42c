"""The losses of alignment: Eq. 1, the contrastive terms with texts, and distillation.

All of them compare cosines in fp32 (or fp64), also under autocast.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from gmail_align.errors import ConfigError, DataError

Direction = Literal["g2r", "r2g", "both"]
"""Which side gives the rows of Eq. 1: generated to real (the paper's), the reverse, or both."""


def alignment_loss(
    generated: Float[Tensor, "b d"],
    real: Float[Tensor, "b d"],
    *,
    temperature: float = 0.07,
    same: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """Pull each generated image to the real image of its caption, off other real ones (Eq. 1).

    ``-mean_i log( exp(cos(g_i, r_i) / t) / sum_j exp(cos(g_i, r_j) / t) )``: rows are generated
    images, negatives are other real images only. Chance is ``ln b``.

    Args:
        generated: Features of generated images; any norm.
        real: Features of the real images with the same captions, row by row; any norm.
        temperature: ``t``.
        same: Pairs (i, j) that are no negatives, such as two captions of one image: they leave the
            denominator; the diagonal always stays.

    Raises:
        DataError: the shapes do not fit.
        ConfigError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ConfigError(f"the temperature is {temperature}, but has to be positive")
    logits = _cosines(generated, real, same) / temperature
    return cross_entropy(_without(logits, same), _diagonal(logits))


def directed_alignment_loss(
    generated: Float[Tensor, "b d"],
    real: Float[Tensor, "b d"],
    direction: Direction,
    *,
    temperature: float = 0.07,
    same: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """Return Eq. 1 with the rows that ``direction`` names; ``both`` is the mean of the two."""
    turned = None if same is None else same.T
    if direction == "g2r":
        return alignment_loss(generated, real, temperature=temperature, same=same)
    if direction == "r2g":
        return alignment_loss(real, generated, temperature=temperature, same=turned)
    there = alignment_loss(generated, real, temperature=temperature, same=same)
    back = alignment_loss(real, generated, temperature=temperature, same=turned)
    return (there + back) / 2


def contrastive_text_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    same: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """Return CLIP's symmetric contrastive loss of images and their texts (Radford et al. 2021).

    Args:
        images: Image features; any norm.
        texts: Text features, row by row; any norm.
        scale: CLIP's own ``exp(logit_scale)``, the inverse of a temperature.
        same: Pairs that share an image or a text, and are no negatives.

    Raises:
        DataError: the shapes do not fit.
    """
    logits = _cosines(images, texts, same) * scale
    by_image = cross_entropy(_without(logits, same), _diagonal(logits))
    turned = None if same is None else same.T
    by_text = cross_entropy(_without(logits.T, turned), _diagonal(logits))
    return (by_image + by_text) / 2


def distillation_loss(
    features: Float[Tensor, "b d"], frozen: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """Return the mean of 1 - cosine between features and those of the frozen encoder.

    Raises:
        DataError: the shapes do not fit.
    """
    _check(features, frozen, None)
    with torch.autocast(features.device.type, enabled=False):
        return (1 - cosine_similarity(_wide(features), _wide(frozen), dim=-1)).mean()


def _cosines(left: Tensor, right: Tensor, same: Tensor | None) -> Tensor:
    _check(left, right, same)
    with torch.autocast(left.device.type, enabled=False):
        return normalize(_wide(left), dim=-1) @ normalize(_wide(right), dim=-1).T


def _without(logits: Tensor, same: Tensor | None) -> Tensor:
    """Take ``same`` pairs out of the softmax, but never the diagonal."""
    if same is None:
        return logits
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return logits.masked_fill(same & ~diagonal, -torch.inf)


def _diagonal(logits: Tensor) -> Tensor:
    return torch.arange(len(logits), device=logits.device)


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _check(left: Tensor, right: Tensor, same: Tensor | None) -> None:
    if left.ndim != 2 or left.shape != right.shape or len(left) == 0:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise DataError(f"features have shapes {shapes}: pairs need two equal shapes (b, d), b > 0")
    if same is not None and same.shape != (len(left), len(left)):
        raise DataError(f"same has shape {tuple(same.shape)}, but the batch has {len(left)} pairs")
