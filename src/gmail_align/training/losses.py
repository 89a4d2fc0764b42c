"""Contrastive losses over the rows of a batch: CLIP's, SigLIP's and Long-CLIP's.

Each function returns one value a pair; the loss of a batch is their mean. All of them compare
cosines in fp32 (or fp64), also under autocast. With ``chunk``, rows are compared that many at a
time and the backward pass compares them again: memory grows with the batch times the chunk instead
of with the square of the batch, and the result is equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize
from torch.utils.checkpoint import checkpoint

from gmail_align.errors import DataError

Positives = Literal["mask", "sum"]
"""How a loss treats other rows of the batch that belong to a row's pair, such as a second caption
of the same image: ``mask`` takes them out of the denominator, ``sum`` makes them positives too."""
COMPONENTS = 32
"""Principal components of images that short captions are compared with (Long-CLIP)."""
SMOOTHING = 0.1
"""Label smoothing of Long-CLIP's released training code."""
_NO_VARIANCE = 1e-5
"""Directions below this share of the largest singular value hold nothing but rounding."""


def contrastive_losses(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    same: Bool[Tensor, "b b"] | Int64[Tensor, "b g"] | None = None,
    positives: Positives = "mask",
    chunk: int | None = None,
) -> Float[Tensor, " b"]:
    """Return ``-log softmax_j(scale cos(row_i, column_j))`` at ``j = i``.

    Args:
        rows: Features; any norm.
        columns: Features of what belongs to each row; any norm.
        scale: The inverse of a temperature.
        same: Pairs (i, j) that are not negatives; or group numbers, where pairs that agree in any
            column belong together, which takes no table of all pairs.
        positives: How those pairs are treated.
        chunk: Rows that are compared at a time; all of them when None.

    Raises:
        DataError: the shapes do not fit.
    """

    def part(cosines: Tensor, start: int, alike: Tensor | None) -> Tensor:
        logits, own = cosines * scale, _diagonal(cosines, start)
        if alike is None:
            return logits.logsumexp(dim=-1) - logits.diagonal(start)
        if positives == "sum":
            negatives = logits.masked_fill(~(alike | own), -torch.inf).logsumexp(dim=-1)
            return logits.logsumexp(dim=-1) - negatives
        kept = logits.masked_fill(alike & ~own, -torch.inf)
        return kept.logsumexp(dim=-1) - logits.diagonal(start)

    return _row_by_row(part, rows, columns, same, chunk)


def contrastive_text_losses(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    same: Bool[Tensor, "b b"] | Int64[Tensor, "b g"] | None = None,
    positives: Positives = "mask",
    chunk: int | None = None,
) -> Float[Tensor, " b"]:
    """Return CLIP's symmetric loss of images and their texts (Radford et al. 2021).

    ``scale`` is CLIP's own ``exp(logit_scale)``; other arguments are those of
    :func:`contrastive_losses`.
    """
    by_image = contrastive_losses(images, texts, scale, same, positives, chunk)
    return (by_image + contrastive_losses(texts, images, scale, turned(same), positives, chunk)) / 2


def sigmoid_text_losses(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    same: Bool[Tensor, "b b"] | Int64[Tensor, "b g"] | None = None,
    *,
    positives: Positives = "mask",
    chunk: int | None = None,
) -> Float[Tensor, " b"]:
    """Return SigLIP's loss: every image and text of the batch is one yes-or-no question.

    ``-sum_j log sigmoid(z_ij (scale cos(x_i, t_j) + bias))`` with ``z_ij`` 1 for pairs and -1
    otherwise (Zhai et al. 2023, Alg. 1); nothing is normalised over the batch. ``scale`` is
    ``exp(logit_scale)`` and ``bias`` is ``logit_bias``. Pairs that belong together are not asked
    about under ``mask``, and their answer is yes under ``sum``.
    """

    def part(cosines: Tensor, start: int, alike: Tensor | None) -> Tensor:
        own = _diagonal(cosines, start)
        yes = own if alike is None or positives == "mask" else own | alike
        terms = logsigmoid((2.0 * yes - 1.0) * (scale * cosines + bias))
        if alike is not None and positives == "mask":
            terms = terms.masked_fill(alike & ~own, 0.0)
        return -terms.sum(dim=-1)

    return _row_by_row(part, images, texts, same, chunk)


def long_short_losses(
    images: Float[Tensor, "b d"],
    long_texts: Float[Tensor, "b d"],
    short_texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    *,
    components: int = COMPONENTS,
    smoothing: float = SMOOTHING,
    same: Bool[Tensor, "b b"] | Int64[Tensor, "b g"] | None = None,
    same_long: Bool[Tensor, "b b"] | Int64[Tensor, "b h"] | None = None,
) -> dict[str, Float[Tensor, " b"]]:
    """Return Long-CLIP's loss: ``long``, ``short`` and ``total``, their sum (Zhang et al. 2024).

    Each is CLIP's symmetric contrastive loss with smoothed labels; short captions see the images'
    principal part only (Sec. 3.2). Pairs that are masked have no part of the label either.

    Args:
        images: Image features; any norm.
        long_texts: Features of their long captions; any norm.
        short_texts: Features of short captions, such as the long ones' first sentences; any norm.
        scale: The inverse temperature.
        components: Principal components of the batch that short captions see.
        smoothing: Share of the label that is spread over the batch.
        same: Pairs that share a short caption or an image; see :func:`contrastive_losses`.
        same_long: Pairs that share a long caption or an image.
    """
    whole = normalize(images.float(), dim=-1)
    part = principal_part(images, components)
    long = _smoothed_pair(whole, long_texts, scale, smoothing, same_long)
    short = _smoothed_pair(part, short_texts, scale, smoothing, same)
    return {"long": long, "short": short, "total": long + short}


def principal_part(
    features: Float[Tensor, "b d"], components: int = COMPONENTS
) -> Float[Tensor, "b d"]:
    """Return what the batch's first principal components keep of normalised features.

    Source: Long-CLIP (Zhang et al. 2024, Sec. 3.2). The components are found in fp32 and taken as
    constants: gradients go through the projection only, because those of the components are
    infinite where two variances are equal (as the many zeros are in a batch that is smaller than
    the dimension). Directions without variance are left out: rounding decides which ones they are.
    The result is not normalised.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = normalize(features.float(), dim=-1)
        mean = unit.mean(dim=0)
        centred = unit - mean
        _, sizes, axes = torch.linalg.svd(centred.detach(), full_matrices=False)
        kept = axes[:components] * (sizes[:components, None] > _NO_VARIANCE * sizes[0])
        projected: Tensor = centred @ kept.T @ kept + mean
        return projected


def turned(same: Tensor | None) -> Tensor | None:
    """Return ``same`` for the other side's rows; group numbers are the same for both."""
    return same.T if same is not None and same.dtype is torch.bool else same


def wide(features: Tensor) -> Tensor:
    """Return features in fp32, or in fp64 where they are."""
    return features if features.dtype == torch.float64 else features.float()


def check_rows(left: Tensor, right: Tensor) -> None:
    """Refuse two sets of features that do not belong together row by row.

    Raises:
        DataError: the shapes differ, or there are 0 rows.
    """
    if left.ndim != 2 or left.shape != right.shape or len(left) == 0:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise DataError(f"features have shapes {shapes}: pairs need two equal shapes (b, d), b > 0")


_Part = Callable[[Tensor, int, Tensor | None], Tensor]
"""Cosines of a chunk of rows with all columns, its first row, what belongs together -> losses."""


def _row_by_row(
    part: _Part, rows: Tensor, columns: Tensor, same: Tensor | None, chunk: int | None
) -> Tensor:
    """Return the loss of every row; ``part`` computes a chunk's, and runs again going back."""
    check_rows(rows, columns)
    if same is not None and len(rows) not in (same.shape if _is_table(same) else same.shape[:1]):
        raise DataError(f"same has shape {tuple(same.shape)}, but the batch has {len(rows)} pairs")
    with torch.autocast(rows.device.type, enabled=False):
        left, right = (normalize(wide(side), dim=-1) for side in (rows, columns))

        def block(some: Tensor, start: int) -> Tensor:
            return part(some @ right.T, start, _alike(same, start, len(some)))

        if chunk is None:
            return block(left, 0)
        parts = [
            checkpoint(block, left[start : start + chunk], start, use_reentrant=False)
            for start in range(0, len(left), chunk)
        ]
        return torch.cat(cast("list[Tensor]", parts))


def _is_table(same: Tensor) -> bool:
    return same.dtype is torch.bool


def _alike(same: Tensor | None, start: int, count: int) -> Tensor | None:
    """Return which columns belong together with each of ``count`` rows from ``start``."""
    if same is None:
        return None
    some = same[start : start + count]
    return some if _is_table(same) else (some[:, None, :] == same[None, :, :]).any(dim=-1)


def _diagonal(cosines: Tensor, start: int) -> Tensor:
    """Mark each row's own column, where the first row is row ``start`` of the batch."""
    places = torch.arange(cosines.shape[1], device=cosines.device)
    return places[start : start + len(cosines), None] == places[None, :]


def _smoothed_pair(
    images: Tensor, texts: Tensor, scale: Tensor | float, smoothing: float, same: Tensor | None
) -> Tensor:
    """Return the mean of both sides' cross-entropies with smoothed labels, for each pair."""
    logits = scale * images @ normalize(texts.float(), dim=-1).T
    alike = _alike(same, 0, len(logits))
    own = _diagonal(logits, 0)
    kept = torch.ones_like(own) if alike is None else ~alike | own
    rows = _smoothed(logits, kept, smoothing)
    return (rows + _smoothed(logits.T, kept.T, smoothing)) / 2


def _smoothed(logits: Tensor, kept: Tensor, smoothing: float) -> Tensor:
    """Return each row's cross-entropy with the diagonal, smoothed over what is kept of the row."""
    shares = logits.masked_fill(~kept, -torch.inf).log_softmax(dim=-1)
    spread = shares.masked_fill(~kept, 0.0).sum(dim=-1) / kept.sum(dim=-1)
    return -((1 - smoothing) * shares.diagonal() + smoothing * spread)
