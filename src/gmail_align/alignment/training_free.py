"""Training-free alignment: affine maps of generated features that need statistics alone, no pairs.

They cost nothing, so an alignment that is trained has to beat them. A map is fitted in float64 from
sums that are taken a block at a time, so memory does not grow with the number of features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.encoders.config import EncoderLayout
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import DataError
from gmail_align.training.losses import wide

_BLOCK: Final = 4_096
"""Rows that are read at a time."""
_RIDGE: Final = 1e-3
"""What CORAL adds to the diagonal of both covariances, as a share of their mean variance."""
LAYOUT: Final = EncoderLayout(tune="none", trunk="frozen_real", head="affine")
"""An encoder whose generated head is an affine map behind the frozen trunk."""


@dataclass(frozen=True)
class AffineMap:
    """``x -> matrix x + shift``."""

    matrix: Float64[Tensor, "d d"]
    shift: Float64[Tensor, " d"]

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Map features row by row, in their own dtype."""
        matrix, shift = (part.to(features) for part in (self.matrix, self.shift))
        return features @ matrix.T + shift


@dataclass(frozen=True)
class Moments:
    """Mean and covariance (divided by n) of a set of features, in float64."""

    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"], rows: Int64[Tensor, " k"] | None = None) -> Moments:
        """Compute the moments of some rows, or of all of them, a block at a time.

        Products within a block keep the features' own precision, float32 or better: their rounding
        is far below that of the features. Sums over blocks are float64.

        Raises:
            DataError: there are fewer than two rows, or a feature is not finite.
        """
        places = torch.arange(len(features)) if rows is None else rows
        if len(places) < 2:
            raise DataError(f"statistics need at least 2 features, but there are {len(places)}")
        dim = features.shape[1]
        mean, covariance = torch.zeros(dim).double(), torch.zeros(dim, dim).double()
        for part in places.split(_BLOCK):
            mean += features[part].double().sum(dim=0) / len(places)
        for part in places.split(_BLOCK):
            block = wide(features[part])
            centred = block - mean.to(block)
            covariance += centred.T @ centred
        covariance /= len(places)
        if not torch.isfinite(covariance).all():
            raise DataError("a feature is not finite: extract the features again")
        return cls(mean, covariance)


def mean_shift(generated: Moments, real: Moments) -> AffineMap:
    """Return ``x - mean_g + mean_r``: the means become equal (Liang et al. 2022, Sec. 4.2)."""
    return _around_means(torch.eye(len(real.mean), dtype=torch.float64), generated, real)


def shift_scale(generated: Moments, real: Moments) -> AffineMap:
    """Return ``(x - mean_g) sqrt(tr C_r / tr C_g) + mean_r``, as ReAlign (arXiv 2602.07026).

    Raises:
        DataError: all generated features are equal.
    """
    spread = generated.covariance.trace()
    if not spread > 0:
        raise DataError("all generated features are equal: their scale cannot be matched")
    scale = (real.covariance.trace() / spread).sqrt()
    eye = torch.eye(len(real.mean), dtype=torch.float64)
    return _around_means(scale * eye, generated, real)


def coral(generated: Moments, real: Moments) -> AffineMap:
    """Return ``C_r^(1/2) C_g^(-1/2) (x - mean_g) + mean_r``: CORAL (Sun et al. 2016, Alg. 1).

    The paper adds the identity to both covariances, for features of about unit variance. Here a
    share of the mean variance is added, so that the map does not depend on the features' scale.

    Raises:
        DataError: all features of one side are equal.
    """
    whiten = _power(generated.covariance, -0.5)
    return _around_means(_power(real.covariance, 0.5) @ whiten, generated, real)


MAPS: Final[Mapping[str, Callable[[Moments, Moments], AffineMap]]] = {
    "mean_shift": mean_shift,
    "shift_scale": shift_scale,
    "coral": coral,
}
"""Every training-free alignment, by the name that ``align.method`` gives it."""


def settings_of(config: AlignConfig) -> AlignConfig:
    """Return the settings by which the data of a training-free method are prepared and judged."""
    weights = dict.fromkeys(AlignWeights.model_fields, 0.0) | {"align": 1.0}
    free = {"encoder": LAYOUT, "dual_heads": True, "data": "synthetic", "text_loss": None}
    return config.model_copy(update={**free, "weights": AlignWeights(**weights)})


@torch.no_grad()
def set_generated_head(encoder: GmailEncoder, fitted: AffineMap) -> None:
    """Let the generated head of a plain encoder apply a map behind the plain projection.

    Args:
        encoder: An encoder of the layout :data:`LAYOUT`.
        fitted: A map of the projected features.
    """
    head, plain = encoder.heads.matrix(Route.GENERATED), encoder.head(Route.FROZEN)
    matrix = fitted.matrix if plain is None else fitted.matrix @ plain.detach().cpu().double()
    head.copy_(matrix)
    encoder.heads.hidden(Route.GENERATED)["hidden.bias"].copy_(fitted.shift)


def _around_means(matrix: Float64[Tensor, "d d"], generated: Moments, real: Moments) -> AffineMap:
    return AffineMap(matrix, real.mean - matrix @ generated.mean)


def _power(covariance: Float64[Tensor, "d d"], exponent: float) -> Float64[Tensor, "d d"]:
    """Return a power of a covariance with a ridge; it is symmetric."""
    size = len(covariance)
    ridge = _RIDGE * covariance.trace() / size
    if not ridge > 0:
        raise DataError("all features are equal: their covariance cannot be matched")
    values, axes = torch.linalg.eigh(covariance + ridge * torch.eye(size, dtype=torch.float64))
    power: Tensor = (axes * values.clamp(min=float(ridge)) ** exponent) @ axes.T
    return power
