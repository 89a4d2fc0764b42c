"""The losses of alignment: Eq. 1, contrastive terms with texts, distillation, the norm penalty.

All of them compare cosines in fp32 (or fp64), also under autocast.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from gmail_align.errors import ConfigError, DataError

Direction = Literal["g2r", "r2g", "both"]
"""Which side gives the rows of Eq. 1: generated to real (the paper's), the reverse, or both."""
Positives = Literal["mask", "sum"]
"""What pairs of one batch that belong together are to each other: nothing (``mask``: they leave the
denominator), or positives as well (``sum``: the numerator is the sum over all of them)."""


def alignment_loss(
    generated: Float[Tensor, "b d"],
    real: Float[Tensor, "b d"],
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    same: Bool[Tensor, "b b"] | None = None,
    positives: Positives = "mask",
) -> Float[Tensor, ""]:
    """Pull each generated image to the real image of its caption, off other real ones (Eq. 1).

    ``-mean_i log( exp(cos(g_i, r_i) / t) / sum_j exp(cos(g_i, r_j) / t) )``: rows are generated
    images, negatives are other real images only. Chance is ``ln b``.

    Args:
        generated: Features of generated images; any norm.
        real: Features of the real images with the same captions, row by row; any norm.
        temperature: ``t``: a positive number, or a scalar tensor that is learned.
        same: Pairs (i, j) that are no negatives, such as two captions of one image; the diagonal
            always is a positive.
        positives: Whether those leave the denominator, or join the numerator.

    Raises:
        DataError: the shapes do not fit.
        ConfigError: the temperature is not positive.
    """
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ConfigError(f"the temperature is {temperature}, but has to be positive")
    logits = _cosines(generated, real, same) / temperature
    return _rowwise(logits, same, positives)


def directed_alignment_loss(
    generated: Float[Tensor, "b d"],
    real: Float[Tensor, "b d"],
    direction: Direction,
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    same: Bool[Tensor, "b b"] | None = None,
    positives: Positives = "mask",
) -> Float[Tensor, ""]:
    """Return Eq. 1 with the rows that ``direction`` names; ``both`` is the mean of the two."""
    turned = None if same is None else same.T
    there, back = (generated, real, same), (real, generated, turned)
    ways = {"g2r": [there], "r2g": [back], "both": [there, back]}[direction]
    losses = [
        alignment_loss(rows, columns, temperature=temperature, same=mask, positives=positives)
        for rows, columns, mask in ways
    ]
    return losses[0] if len(losses) == 1 else (losses[0] + losses[1]) / 2


def contrastive_text_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    same: Bool[Tensor, "b b"] | None = None,
    positives: Positives = "mask",
) -> Float[Tensor, ""]:
    """Return CLIP's symmetric contrastive loss of images and their texts (Radford et al. 2021).

    Args:
        images: Image features; any norm.
        texts: Text features, row by row; any norm.
        scale: CLIP's own ``exp(logit_scale)``, the inverse of a temperature.
        same: Pairs that share an image or a text, and are no negatives.
        positives: Whether those leave the denominator, or join the numerator.

    Raises:
        DataError: the shapes do not fit.
    """
    logits = _cosines(images, texts, same) * scale
    turned = None if same is None else same.T
    return (_rowwise(logits, same, positives) + _rowwise(logits.T, turned, positives)) / 2


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


def norm_loss(features: Float[Tensor, "b d"], frozen: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return the mean of ``| |f| / m - 1 |``, m being the mean norm of the frozen features.

    Cosines leave the norm of features free; consumers that read features as they are do not.

    Raises:
        DataError: the shapes do not fit.
    """
    _check(features, frozen, None)
    mean = vector_norm(_wide(frozen), dim=-1).mean()
    off: Tensor = vector_norm(_wide(features), dim=-1) / mean - 1
    return off.abs().mean()


def _cosines(left: Tensor, right: Tensor, same: Tensor | None) -> Tensor:
    _check(left, right, same)
    with torch.autocast(left.device.type, enabled=False):
        return normalize(_wide(left), dim=-1) @ normalize(_wide(right), dim=-1).T


def _rowwise(logits: Tensor, same: Tensor | None, positives: Positives) -> Tensor:
    """Return the mean over rows of -log of the positives' share of the row's softmax."""
    if positives == "sum" and same is not None:
        own = same | _eye(logits)
        found = logits.masked_fill(~own, -torch.inf).logsumexp(dim=-1)
        return (logits.logsumexp(dim=-1) - found).mean()
    return cross_entropy(_without(logits, same), _diagonal(logits))


def _without(logits: Tensor, same: Tensor | None) -> Tensor:
    """Take ``same`` out of the denominator, all but the diagonal."""
    if same is None:
        return logits
    return logits.masked_fill(same & ~_eye(logits), -torch.inf)


def _eye(logits: Tensor) -> Tensor:
    return torch.eye(len(logits), dtype=torch.bool, device=logits.device)


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
