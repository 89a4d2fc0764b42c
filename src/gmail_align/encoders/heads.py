"""Heads: what turns the trunk's output into a feature, one for each modality."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from gmail_align.encoders.config import EncoderLayout
from gmail_align.encoders.route import Route
from gmail_align.runtime import stable_seed


class HiddenLayer(nn.Module):
    """What a head has beside its matrix W: V and, for a residual head, U."""

    def __init__(self, kind: str, width: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        inner = torch.randn(width, width, generator=generator) * width**-0.5
        self.inner = nn.Parameter(inner)
        """V."""
        self.outer = nn.Parameter(torch.zeros(dim, width)) if kind == "residual" else None
        """U; None for an MLP, whose outer matrix is W."""

    def forward(
        self, pooled: Float[Tensor, "b width"], weight: Float[Tensor, "dim width"]
    ) -> Float[Tensor, "b dim"]:
        """Apply the head with W = ``weight``."""
        hidden: Tensor = gelu(linear(pooled, self.inner))
        if self.outer is None:
            bent: Tensor = linear(hidden, weight)
            return bent
        features: Tensor = linear(pooled, weight) + linear(hidden, self.outer)
        return features


def first_weight(
    plain: Float[Tensor, "dim width"], layout: EncoderLayout, seed: int
) -> Float[Tensor, "dim width"]:
    """Return what W begins as; ``plain`` is the model's own projection."""
    if layout.head_init == "clip":
        return plain.clone()
    if layout.head_init == "identity":
        return torch.eye(*plain.shape)
    generator = torch.Generator().manual_seed(stable_seed(seed, "head"))
    noise: Tensor = torch.randn(plain.shape, generator=generator) * plain.shape[1] ** -0.5
    return noise


class HiddenLayers(nn.Module):
    """What the heads of both modalities have beside their matrices; nothing for linear ones."""

    def __init__(
        self, plain: Float[Tensor, "dim width"], layout: EncoderLayout, dual: bool, seed: int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        if layout.head != "linear":
            dim, width = plain.shape
            for name in ("real", "generated")[: 2 if dual else 1]:
                start = stable_seed(seed, "head", "hidden")
                self.layers[name] = HiddenLayer(layout.head, width, dim, start)

    def apply_head(
        self, pooled: Float[Tensor, "b width"], weight: Float[Tensor, "dim width"], route: Route
    ) -> Float[Tensor, "b dim"]:
        """Apply the head of ``route`` with W = ``weight``."""
        layer = None if route is Route.FROZEN else self._layer(route)
        if layer is None:
            return linear(pooled, weight)
        features: Tensor = layer(pooled, weight)
        return features

    def tensors(self, route: Route | None = None) -> dict[str, nn.Parameter]:
        """Return the parameters by name: all of them, or those of one route's head."""
        if route is None:
            return dict(self.layers.named_parameters(prefix="hidden"))
        layer = self._layer(route)
        return {} if layer is None else dict(layer.named_parameters(prefix="hidden"))

    def _layer(self, route: Route) -> nn.Module | None:
        name = "generated" if route is Route.GENERATED and "generated" in self.layers else "real"
        if name not in self.layers:
            return None
        return self.layers[name]
