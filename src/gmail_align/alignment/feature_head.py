"""The generated head alone: a space of principal components, a start in it, and what is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from gmail_align.alignment.feature_config import FeatureAlignConfig
from gmail_align.alignment.training_free import MAPS, AffineMap, Moments
from gmail_align.data.batches import sample_rows
from gmail_align.encoders.feature_map import Bend, FeatureMap
from gmail_align.errors import DataError
from gmail_align.features.store import Features
from gmail_align.runtime import stable_seed

_BLOCK: Final = 4_096
_SAMPLE: Final = 20_000
"""Rows of each side that principal components are computed from."""
_STARTS: Final = {"shift": "mean_shift"}
"""Starts that the training-free methods call by another name."""


@dataclass(frozen=True)
class Space:
    """The principal components in which heads are learnt, with features of variance one in it.

    ``z = axes^T (x - centre) / scale``; axes are orthonormal.
    """

    centre: Float[Tensor, " d"]
    axes: Float[Tensor, "d k"]
    scale: float
    gap: Float[Tensor, " d"]
    """Mean of the real features less that of the generated ones."""

    @property
    def rest(self) -> Float[Tensor, " d"]:
        """The part of ``gap`` that lies outside of the components."""
        return self.gap - self.axes @ (self.axes.T @ self.gap)

    @classmethod
    def of(cls, real: Features, generated: Features, components: int, seed: int) -> Space:
        """Find the space.

        Args:
            real: Features of real images.
            generated: Features of generated images.
            components: How many components; 0 takes all.
            seed: Of the rows that are looked at.

        Raises:
            DataError: all features of a side are equal.
        """
        draw = stable_seed(seed, "space")
        moments = [
            Moments.of(one.array, torch.from_numpy(sample_rows(len(one.ids), _SAMPLE, draw)))
            for one in (generated, real)
        ]
        dim = len(moments[0].mean)
        axes = torch.eye(dim, dtype=torch.float64)
        if 0 < components < dim:
            axes = torch.linalg.eigh(moments[0].covariance + moments[1].covariance)[1]
            axes = axes[:, -components:].flip(1)
        variance = float((axes.T @ moments[1].covariance @ axes).trace()) / axes.shape[1]
        if not variance > 0:
            raise DataError(f"all features of {real.name} are equal: extract them again")
        gap = (moments[1].mean - moments[0].mean).float()
        return cls(moments[0].mean.float(), axes.float().contiguous(), variance**0.5, gap)

    def project(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return the coordinates of features, some rows at a time."""
        parts = [
            (block.float() - self.centre) @ self.axes / self.scale
            for block in features.split(_BLOCK)
        ]
        return torch.cat(parts)

    def lift(self, start: AffineMap, residual: Residual | None, *, moved: bool) -> FeatureMap:
        """Return a map of whole features from one of their coordinates.

        Args:
            start: The start, in the space.
            residual: What was learnt on top of it.
            moved: Whether what is left of a feature outside the space is shifted.
        """
        axes, centre = self.axes.double(), self.centre.double()
        matrix, shift = start.matrix.double(), start.shift.double()
        bend = None
        if residual is not None and residual.kind == "mlp":
            inner = residual.inner.double() @ axes.T / self.scale
            offset = residual.offset.double() - inner @ centre
            outer = self.scale * axes @ residual.outer.double()
            bend = Bend(inner.float(), offset.float(), outer.float())
        elif residual is not None:
            matrix = matrix + residual.product.double()
        if residual is not None:
            shift = shift + residual.bias.double()
        change = axes @ (matrix - torch.eye(len(matrix), dtype=torch.float64)) @ axes.T
        gap = self.gap.double()
        rest = gap - axes @ (axes.T @ gap) if moved else torch.zeros_like(gap)
        moves = self.scale * axes @ shift - change @ centre + rest
        whole = torch.eye(len(centre), dtype=torch.float64) + change
        return FeatureMap(whole.float(), moves.float(), bend)


class Residual(nn.Module):
    """What a head adds to its start: ``outer inner z + bias``, with a bend between for an MLP."""

    def __init__(self, kind: str, dim: int, rank: int, seed: int) -> None:
        super().__init__()
        self.kind = kind
        generator = torch.Generator().manual_seed(stable_seed(seed, "residual"))
        width = dim if kind == "linear" else min(rank, dim)
        first = torch.eye(dim)
        if kind != "linear":
            first = torch.randn(width, dim, generator=generator) * dim**-0.5
        self.inner = nn.Parameter(first, requires_grad=kind != "linear")
        self.offset = nn.Parameter(torch.zeros(width), requires_grad=kind == "mlp")
        self.outer = nn.Parameter(torch.zeros(dim, width))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, rows: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return what is added to the start of these coordinates."""
        if self.kind == "linear":
            added: Tensor = linear(rows, self.outer, self.bias)
            return added
        hidden = linear(rows, self.inner, self.offset)
        added = linear(gelu(hidden) if self.kind == "mlp" else hidden, self.outer, self.bias)
        return added

    @property
    def product(self) -> Float[Tensor, "k k"]:
        """The matrix of a residual without a bend."""
        return (self.outer @ self.inner).detach()


@dataclass(frozen=True)
class Rows:
    """Coordinates of rows of both sides."""

    real: Float[Tensor, "n k"]
    generated: Float[Tensor, "m k"]

    def start(
        self, name: str, real: Int64[Tensor, " a"], generated: Int64[Tensor, " b"]
    ) -> AffineMap:
        """Fit a training-free map to some rows of both sides."""
        if name == "identity":
            dim = self.real.shape[1]
            return AffineMap(torch.eye(dim).double(), torch.zeros(dim).double())
        if name == "shift":  # needs means alone, of one row too
            gap = self.real[real].double().mean(0) - self.generated[generated].double().mean(0)
            return AffineMap(torch.eye(len(gap)).double(), gap)
        moments = Moments.of(self.generated, generated), Moments.of(self.real, real)
        return MAPS[_STARTS.get(name, name)](*moments)


def new_residual(config: FeatureAlignConfig, dim: int, seed: int) -> Residual | None:
    """Return an untrained residual; None where nothing is learnt."""
    return None if config.head == "none" else Residual(config.head, dim, config.rank, seed)


def mapped(head: FeatureMap, features: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "b d"]]:
    """Map features some rows at a time."""
    with torch.no_grad():
        for block in features.split(_BLOCK):
            yield head(block.float())
