"""Heads: what turns the trunk's output into a feature, one for each modality."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from gmail_align.artifacts import write_bytes
from gmail_align.encoders.config import EncoderLayout
from gmail_align.encoders.lora import copy_tensors, read_tensors
from gmail_align.encoders.route import Route
from gmail_align.runtime import stable_seed

HEADS = "heads.safetensors"
HIDDEN = "head_layers.safetensors"


class Shift(nn.Module):
    """What an affine head has beside its matrix W: b."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(
        self, pooled: Float[Tensor, "b width"], weight: Float[Tensor, "dim width"]
    ) -> Float[Tensor, "b dim"]:
        """Apply the head with W = ``weight``."""
        features: Tensor = linear(pooled, weight, self.bias)
        return features


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


class Heads(nn.Module):
    """The heads of both modalities, which is one where they are shared."""

    def __init__(
        self, plain: Float[Tensor, "dim width"], layout: EncoderLayout, dual: bool, seed: int
    ) -> None:
        super().__init__()
        weight = first_weight(plain, layout, seed)
        self.real = nn.Parameter(weight.clone())
        self.generated = nn.Parameter(weight.clone()) if dual else self.real
        self.layers = nn.ModuleDict()
        """What heads that are not linear have beside their matrices."""
        dim, width = plain.shape
        if layout.head == "affine":
            self.layers["generated" if dual else "real"] = Shift(dim)
        elif layout.head != "linear":
            for name in ("real", "generated")[: 2 if dual else 1]:
                start = stable_seed(seed, "head", "hidden")
                self.layers[name] = HiddenLayer(layout.head, width, dim, start)

    def forward(
        self, pooled: Float[Tensor, "b width"], weight: Float[Tensor, "dim width"], route: Route
    ) -> Float[Tensor, "b dim"]:
        """Apply the head of ``route`` with W = ``weight``."""
        layer = None if route is Route.FROZEN else self._layer(route)
        if layer is None:
            return linear(pooled, weight)
        features: Tensor = layer(pooled, weight)
        return features

    def matrix(self, route: Route) -> nn.Parameter:
        """Return W of a route that is not frozen."""
        return self.generated if route is Route.GENERATED else self.real

    def hidden(self, route: Route | None = None) -> dict[str, nn.Parameter]:
        """Return the hidden layers' parameters by name: all of them, or those of one route."""
        if route is None:
            return dict(self.layers.named_parameters(prefix="hidden"))
        layer = self._layer(route)
        return {} if layer is None else dict(layer.named_parameters(prefix="hidden"))

    def own(self) -> dict[str, nn.Parameter]:
        """Return every parameter by its name in the encoder."""
        heads = {"real_head": self.real, "generated_head": self.generated}
        return (heads if self.generated is not self.real else {"real_head": self.real}) | (
            self.hidden()
        )

    def save(self, folder: Path) -> None:
        """Write the heads to an encoder's folder."""
        for path, parameters in self._files(folder).items():
            tensors = {name: value.detach().cpu().clone() for name, value in parameters.items()}
            write_bytes(path, save(tensors, {"format": "pt"}))

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: a file is missing, damaged or of another shape.
        """
        for path, parameters in self._files(folder).items():
            copy_tensors(parameters, read_tensors(path, set(parameters)), path)

    def _files(self, folder: Path) -> dict[Path, dict[str, nn.Parameter]]:
        files = {folder / HEADS: {"real": self.real, "generated": self.generated}}
        return files | ({folder / HIDDEN: self.hidden()} if self.layers else {})

    def _layer(self, route: Route) -> nn.Module | None:
        name = "generated" if route is Route.GENERATED and "generated" in self.layers else "real"
        return self.layers[name] if name in self.layers else None  # noqa: SIM401
