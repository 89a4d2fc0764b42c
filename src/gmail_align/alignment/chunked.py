"""The contrastive losses in O(batch x chunk) memory, for batches whose b x b table does not fit.

Each chunk of rows is compared with all columns and forgotten; the backward pass computes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize
from torch.utils.checkpoint import checkpoint

from gmail_align.alignment.losses import Direction, Positives


def chunked_alignment_loss(
    generated: Float[Tensor, "b d"],
    real: Float[Tensor, "b d"],
    direction: Direction,
    *,
    temperature: float | Float[Tensor, ""],
    groups: Int64[Tensor, "b g"],
    positives: Positives,
    chunk: int,
) -> Float[Tensor, ""]:
    """Return :func:`directed_alignment_loss`, equal to it up to rounding.

    Args:
        generated: Features of generated images; any norm.
        real: Features of the real images with the same captions, row by row; any norm.
        direction: Which side gives the rows.
        temperature: The temperature.
        groups: Pairs that agree in any column belong together.
        positives: What pairs that belong together are to each other.
        chunk: Rows that are compared at a time.
    """
    scale = 1 / temperature
    ways = {"g2r": [(generated, real)], "r2g": [(real, generated)]}
    ways["both"] = [*ways["g2r"], *ways["r2g"]]
    losses = [
        chunked_rows(rows, columns, scale, groups, positives, chunk)
        for rows, columns in ways[direction]
    ]
    return torch.stack(losses).mean()


def chunked_text_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    *,
    groups: Int64[Tensor, "b g"],
    positives: Positives,
    chunk: int,
) -> Float[Tensor, ""]:
    """Return :func:`contrastive_text_loss`, equal to it up to rounding; see above for arguments."""
    by_image = chunked_rows(images, texts, scale, groups, positives, chunk)
    return (by_image + chunked_rows(texts, images, scale, groups, positives, chunk)) / 2


def chunked_sigmoid_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    logit: tuple[Float[Tensor, ""] | float, Float[Tensor, ""] | float],
    *,
    groups: Int64[Tensor, "b g"],
    positives: Positives,
    chunk: int,
) -> Float[Tensor, ""]:
    """Return :func:`sigmoid_text_loss`, equal to it up to rounding; ``logit``: scale and bias."""
    return _mean(_yes_or_no, images, texts, logit, groups, positives, chunk)


def chunked_rows(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    groups: Int64[Tensor, "b g"],
    positives: Positives,
    chunk: int,
) -> Float[Tensor, ""]:
    """Return the mean over rows of -log of the positives' share of the row's softmax."""
    return _mean(_part, rows, columns, scale, groups, positives, chunk)


def _mean(
    part: Callable[..., Tensor],
    rows: Tensor,
    columns: Tensor,
    logit: object,
    groups: Tensor,
    positives: Positives,
    chunk: int,
) -> Tensor:
    """Return the mean loss of all rows; ``part`` sums a chunk's, and is run again going back."""
    with torch.autocast(rows.device.type, enabled=False):
        left, right = (normalize(_wide(side), dim=-1) for side in (rows, columns))
        total = left.new_zeros(())
        for start in range(0, len(left), chunk):
            found = checkpoint(
                part, left[start : start + chunk], right, logit, groups, positives, start,
                use_reentrant=False,
            )  # fmt: skip
            total = total + cast("Tensor", found)
        return total / len(left)


def _part(
    left: Tensor,
    right: Tensor,
    scale: Tensor | float,
    groups: Tensor,
    positives: Positives,
    start: int,
) -> Tensor:
    """Return the sum of the losses of a chunk of rows."""
    logits = left @ right.T * scale
    own, same, diagonal = _together(groups, start, len(left))
    if positives == "sum":
        found = logits.masked_fill(~(same | diagonal), -torch.inf).logsumexp(dim=-1)
        return (logits.logsumexp(dim=-1) - found).sum()
    found = logits.gather(1, own[:, None])[:, 0]
    return (logits.masked_fill(same & ~diagonal, -torch.inf).logsumexp(dim=-1) - found).sum()


def _yes_or_no(
    left: Tensor,
    right: Tensor,
    logit: tuple[Tensor | float, Tensor | float],
    groups: Tensor,
    positives: Positives,
    start: int,
) -> Tensor:
    """Return the sum of the sigmoid losses of a chunk of rows."""
    _, same, diagonal = _together(groups, start, len(left))
    yes = same | diagonal if positives == "sum" else diagonal
    terms = logsigmoid((2.0 * yes - 1.0) * (left @ right.T * logit[0] + logit[1]))
    return -terms.sum() if positives == "sum" else -terms.masked_fill(same & ~diagonal, 0.0).sum()


def _together(groups: Tensor, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a chunk's row numbers, which columns belong to each row, and which one is its own."""
    own = torch.arange(start, start + count, device=groups.device)
    same = (groups[own][:, None, :] == groups[None, :, :]).any(dim=-1)
    places = torch.arange(len(groups), device=groups.device)
    return own, same, own[:, None] == places[None, :]


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
