"""Distances between two sets of features that need no pairing: Frechet distance and CMMD."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.metrics.ranks import require_features, unit_rows

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_BLOCK = 1 << 22


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), the FID of Heusel et al. (2017) on
    whatever features are given, as they are. Biased: it falls with n, so compare equal n.

    Raises:
        UserError: features cannot be compared, or a set has fewer than two rows.
    """
    require_features(a=a, b=b)
    if min(len(a), len(b)) < 2:
        raise UserError("a Frechet distance needs at least two rows in each set")
    first, second = _covariance(a.double()), _covariance(b.double())
    root = _symmetric_root(first)
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum()
    return float(shift + first.trace() + second.trace() - 2 * cross)


def cmmd(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, sigma: float = CMMD_SIGMA) -> float:
    """Return CMMD: the squared kernel distance of normalised features, times 1000.

    Gaussian kernel exp(-|x - y|^2 / 2 sigma^2), the biased estimate with its diagonal, as in
    Jayasumana et al. (2024), "Rethinking FID". Streamed in blocks, in float64.

    Raises:
        UserError: features cannot be compared.
    """
    require_features(a=a, b=b)
    first, second = unit_rows(a).double(), unit_rows(b).double()
    within = _kernel_mean(first, first, sigma) + _kernel_mean(second, second, sigma)
    return CMMD_SCALE * (within - 2 * _kernel_mean(first, second, sigma))


def _kernel_mean(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"], sigma: float) -> float:
    """Return the mean of kernel - 1 over all couples; without the 1, no digits cancel."""
    scale, b_square, total = -0.5 / sigma**2, b.square().sum(1), 0.0
    for rows in torch.split(a, max(1, _BLOCK // len(b))):
        squared = rows.square().sum(1)[:, None] + b_square[None] - 2 * rows @ b.T
        total += float(torch.expm1(scale * squared).sum())
    return total / (len(a) * len(b))


def _symmetric_root(matrix: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """Return the square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _covariance(features: Float64[Tensor, "n d"]) -> Float64[Tensor, "d d"]:
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)
