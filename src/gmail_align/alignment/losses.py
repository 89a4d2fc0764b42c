"""The losses of alignment that compare images: Eq. 1, distillation and the norm penalty.

All of them work in fp32 (or fp64), also under autocast. Losses with texts are in
:mod:`gmail_align.training.losses`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity

from gmail_align.errors import ConfigError
from gmail_align.training.losses import Positives, check_rows, contrastive_losses, turned, wide

Direction = Literal["g2r", "r2g", "both"]
"""Which side gives the rows of Eq. 1: generated to real (the paper's), the reverse, or both."""


def alignment_loss(
    generated: Float[Tensor, "b d"],
    real: Float[Tensor, "b d"],
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    same: Bool[Tensor, "b b"] | Int64[Tensor, "b g"] | None = None,
    positives: Positives = "mask",
    direction: Direction = "g2r",
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Pull each generated image to the real image of its caption, off other real ones (Eq. 1).

    ``-mean_i log( exp(cos(g_i, r_i) / t) / sum_j exp(cos(g_i, r_j) / t) )``: rows are generated
    images, negatives are other real images only. Chance is ``ln b``.

    Args:
        generated: Features of generated images; any norm.
        real: Features of the real images with the same captions, row by row; any norm.
        temperature: ``t``: a positive number, or a scalar tensor that is learned.
        same: Pairs (i, j) that are not negatives, such as two captions of one image: a table, or
            group numbers. Pairs whose group numbers agree in any column belong together. The
            diagonal is always a positive.
        positives: Whether those pairs leave the denominator, or join the numerator.
        direction: Which side gives the rows; ``both`` is the mean of the two.
        chunk: Rows that are compared at a time, to save memory; all of them when None.

    Raises:
        DataError: the shapes do not fit.
        ConfigError: the temperature is not positive.
    """
    return alignment_losses(
        generated,
        real,
        temperature=temperature,
        same=same,
        positives=positives,
        direction=direction,
        chunk=chunk,
    ).mean()


def alignment_losses(
    generated: Float[Tensor, "b d"],
    real: Float[Tensor, "b d"],
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    same: Bool[Tensor, "b b"] | Int64[Tensor, "b g"] | None = None,
    positives: Positives = "mask",
    direction: Direction = "g2r",
    chunk: int | None = None,
) -> Float[Tensor, " b"]:
    """Return Eq. 1 of each pair, whose mean is :func:`alignment_loss`; the same arguments."""
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ConfigError(f"the temperature is {temperature}: it must be positive")
    there, back = (generated, real, same), (real, generated, turned(same))
    ways = {"g2r": [there], "r2g": [back], "both": [there, back]}[direction]
    losses = [
        contrastive_losses(rows, columns, 1 / temperature, alike, positives, chunk)
        for rows, columns, alike in ways
    ]
    return torch.stack(losses).mean(dim=0)


def distillation_losses(
    features: Float[Tensor, "b d"], frozen: Float[Tensor, "b d"]
) -> Float[Tensor, " b"]:
    """Return 1 - cosine between each feature and that of the frozen encoder.

    Raises:
        DataError: the shapes do not fit.
    """
    check_rows(features, frozen)
    with torch.autocast(features.device.type, enabled=False):
        return 1 - cosine_similarity(wide(features), wide(frozen), dim=-1)


def norm_losses(
    features: Float[Tensor, "b d"], frozen: Float[Tensor, "b d"]
) -> Float[Tensor, " b"]:
    """Return ``| |f| / m - 1 |``, where m is the mean norm of the frozen features.

    Cosines leave the norm of features free; consumers that do not normalise see it.

    Raises:
        DataError: the shapes do not fit.
    """
    check_rows(features, frozen)
    mean = vector_norm(wide(frozen), dim=-1).mean()
    off: Tensor = vector_norm(wide(features), dim=-1) / mean - 1
    return off.abs()
