"""Distances between two sets of features that need no pairing: Frechet distance and CMMD.

Their intervals come from influence functions (the delta method): what each image adds to the
distance, summed by pair or image. They hold the chance of the draw and not the bias that both
distances have on few images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.metrics.ranks import require_features, unit_rows

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_BLOCK = 1 << 22
_TWO_SIDED = 1.959964


@dataclass(frozen=True)
class Distance:
    """A distance and what each row of the two sets adds to it.

    Attributes:
        value: the distance.
        first: (n,) influence of each row of the first set.
        second: (m,) influence of each row of the second set.
    """

    value: float
    first: Float64[Tensor, " n"]
    second: Float64[Tensor, " m"]


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), the FID of Heusel et al. (2017) on
    whatever features are given, as they are. Biased: it falls with n, so compare equal n.

    Raises:
        UserError: features cannot be compared, or a set has fewer than two rows.
    """
    return _Gaussians(a, b).distance()


def frechet_influence(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Distance | None:
    """Return the Frechet distance with its influence; None where a set has too few rows for it.

    The derivative with respect to S_b is I - T, where T = R (R S_b R)^(-1/2) R with R = S_a^(1/2)
    is the optimal map from b to a (Dowson & Landau 1982); both sets need more rows than dimensions.

    Raises:
        UserError: features cannot be compared, or a set has fewer than two rows.
    """
    fitted = _Gaussians(a, b)
    if min(len(a), len(b)) <= a.shape[1]:
        return None
    forth, back = fitted.maps()
    sides = zip((fitted.a, fitted.b), (back, forth), (fitted.shift, -fitted.shift), strict=True)
    first, second = (_gaussian_influence(rows, own, shift) for rows, own, shift in sides)
    return Distance(fitted.distance(), first, second)


def cmmd(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, sigma: float = CMMD_SIGMA) -> float:
    """Return CMMD: the squared kernel distance of normalised features, times 1000.

    Gaussian kernel exp(-|x - y|^2 / 2 sigma^2), the biased estimate with its diagonal, as in
    Jayasumana et al. (2024), "Rethinking FID". Streamed in blocks, in float64.

    Raises:
        UserError: features cannot be compared.
    """
    return cmmd_influence(a, b, sigma=sigma).value


def cmmd_influence(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, sigma: float = CMMD_SIGMA
) -> Distance:
    """Return CMMD with its influence.

    Raises:
        UserError: features cannot be compared.
    """
    require_features(a=a, b=b)
    first, second = unit_rows(a).double(), unit_rows(b).double()
    within_a, _ = _kernel_means(first, first, sigma)
    within_b, _ = _kernel_means(second, second, sigma)
    across_a, across_b = _kernel_means(first, second, sigma)
    sides = [
        2 * CMMD_SCALE * (own - other)
        for own, other in ((within_a, across_a), (within_b, across_b))
    ]
    value = float(within_a.mean() + within_b.mean() - 2 * across_a.mean())
    return Distance(CMMD_SCALE * value, *(side - side.mean() for side in sides))


def distance_estimate(distance: Distance, owner: NDArray[np.int64] | None = None) -> Estimate:
    """Return the distance with a 95% interval.

    Args:
        distance: the distance.
        owner: one group a pair, where row i of both sets is a pair; None when they are unrelated.
    """
    first, second = (side.cpu().numpy() / len(side) for side in (distance.first, distance.second))
    if owner is None:
        variance, n = float((first**2).sum() + (second**2).sum()), min(len(first), len(second))
    else:
        sums = np.bincount(owner, first + second)
        variance, n = float((sums**2).sum()), len(sums)
    half = _TWO_SIDED * math.sqrt(variance)
    return Estimate(distance.value, max(0.0, distance.value - half), distance.value + half, n)


class _Gaussians:
    """Gaussians fitted to two sets, in float64."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        require_features(a=a, b=b)
        if min(len(a), len(b)) < 2:
            raise UserError("a Frechet distance needs at least two rows in each set")
        self.a, self.b = (side.double() - side.double().mean(0) for side in (a, b))
        self.shift = a.double().mean(0) - b.double().mean(0)
        self.covariances = [side.T @ side / (len(side) - 1) for side in (self.a, self.b)]
        self.spectrum = torch.linalg.eigh(self.covariances[0])
        root = _powers(self.spectrum, 0.5)
        self.crossed = root @ self.covariances[1] @ root

    def distance(self) -> float:
        cross = torch.linalg.eigvalsh(self.crossed).clamp(min=0).sqrt().sum()
        spread = self.covariances[0].trace() + self.covariances[1].trace() - 2 * cross
        return max(0.0, float(self.shift.square().sum() + spread))

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return the optimal maps from b to a and from a to b."""
        root, inverse = _powers(self.spectrum, 0.5), _powers(self.spectrum, -0.5)
        crossed = torch.linalg.eigh(self.crossed)
        forth = root @ _powers(crossed, -0.5) @ root
        return forth, inverse @ _powers(crossed, 0.5) @ inverse


def _gaussian_influence(
    rows: Float64[Tensor, "n d"], to_other: Float64[Tensor, "d d"], shift: Float64[Tensor, " d"]
) -> Float64[Tensor, " n"]:
    """Return 2 shift.x + x'(I - T)x, centred: the derivative at each (centred) row."""
    moved = rows - rows @ to_other
    raw: Tensor = 2 * rows @ shift + (rows * moved).sum(1)
    return raw - raw.mean()


def _kernel_means(
    a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"], sigma: float
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " m"]]:
    """Return each row's mean of kernel - 1 over the other set; without the 1, no digits cancel."""
    scale, b_square = -0.5 / sigma**2, b.square().sum(1)
    of_a, of_b = [], b.new_zeros(len(b))
    for rows in torch.split(a, max(1, _BLOCK // len(b))):
        squared = rows.square().sum(1)[:, None] + b_square[None] - 2 * rows @ b.T
        kernel = torch.expm1(scale * squared)
        of_a.append(kernel.mean(1))
        of_b += kernel.sum(0)
    return torch.cat(of_a), of_b / len(a)


def _powers(spectrum: tuple[Tensor, Tensor], power: float) -> Float64[Tensor, "d d"]:
    """Return a power of a positive semi-definite matrix, a pseudo-inverse where it is negative."""
    values, vectors = spectrum
    least = float(values.max().clamp(min=0)) * 1e-12
    kept = values > least
    scaled = torch.where(kept, values.clamp(min=least), torch.ones_like(values)) ** power * kept
    power_of: Tensor = (vectors * scaled) @ vectors.T
    return power_of
