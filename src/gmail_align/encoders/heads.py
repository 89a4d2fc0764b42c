"""Heads: what turns the trunk's output into a feature, one for each modality."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import batch_norm, gelu, layer_norm, linear

from gmail_align.artifacts import write_bytes
from gmail_align.encoders.config import EncoderLayout
from gmail_align.encoders.lora import copy_tensors, read_tensors
from gmail_align.encoders.route import Route
from gmail_align.runtime import stable_seed

HEADS = "heads.safetensors"
HIDDEN = "head_layers.safetensors"
_EPS = 1e-5


class Norm(nn.Module):
    """Normalisation of what a head reads: over the batch in training, or of each image."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.statistics = nn.ParameterDict()
        """Running mean and variance. They are parameters without gradient, so that checkpoints,
        folders and fingerprints treat them like all else that training changes."""
        if kind == "batch":
            start = {"mean": torch.zeros(width), "variance": torch.ones(width)}
            fixed = {key: nn.Parameter(value, requires_grad=False) for key, value in start.items()}
            self.statistics.update(fixed)

    def forward(self, pooled: Float[Tensor, "b width"]) -> Float[Tensor, "b width"]:
        """Normalise; in training, batch normalisation moves its running statistics."""
        if not self.statistics:
            return layer_norm(pooled, self.weight.shape, self.weight, self.bias, _EPS)
        mean, variance = self.statistics["mean"], self.statistics["variance"]
        return batch_norm(pooled, mean, variance, self.weight, self.bias, self.training, eps=_EPS)

    @torch.no_grad()
    def undo(self, pooled: Float[Tensor, "n width"]) -> None:
        """Choose gain and shift so that features like these come out about as they went in."""
        axis = 0 if self.statistics else 1
        mean, variance = pooled.mean(dim=axis), pooled.var(dim=axis, unbiased=False)
        if self.statistics:
            self.statistics["mean"].copy_(mean)
            self.statistics["variance"].copy_(variance)
        else:
            mean, variance = mean.mean(), variance.mean()
        self.weight.copy_((variance + _EPS).sqrt().expand_as(self.weight))
        self.bias.copy_(mean.expand_as(self.bias))

    def affine(self) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]] | None:
        """Return gain and shift of batch normalisation outside training; None of another kind."""
        if not self.statistics:
            return None
        gain = self.weight / (self.statistics["variance"] + _EPS).sqrt()
        return gain, self.bias - gain * self.statistics["mean"]


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
        self.norms = nn.ModuleDict()
        """What normalises the input of each head."""
        dim, width = plain.shape
        if layout.norm != "none":
            names = ("real", "generated")[: 2 if dual else 1]
            self.norms.update({name: Norm(layout.norm, width) for name in names})
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
        if route is Route.FROZEN:
            return linear(pooled, weight)
        norm, layer = self.norm(route), self._of(self.layers, route)
        pooled = pooled if norm is None else norm(pooled)
        if layer is None:
            return linear(pooled, weight)
        features: Tensor = layer(pooled, weight)
        return features

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Let batch normalisation go by the batch, and move its running statistics."""
        self.train()
        try:
            yield
        finally:
            self.eval()

    @property
    def statistics(self) -> set[int]:
        """The ids of the parameters that change without a gradient."""
        return {
            id(p) for norm in self.norms.values() for p in cast("Norm", norm).statistics.values()
        }

    def norm(self, route: Route) -> Norm | None:
        """Return what normalises the input of a route's head, if anything does."""
        norm = self._of(self.norms, route)
        return None if norm is None else cast("Norm", norm)

    def undo_norms(self, pooled: Float[Tensor, "n width"]) -> None:
        """Let every normalisation begin as about the identity of features like these."""
        for norm in self.norms.values():
            cast("Norm", norm).undo(pooled)

    def matrix(self, route: Route) -> nn.Parameter:
        """Return W of a route that is not frozen."""
        return self.generated if route is Route.GENERATED else self.real

    def hidden(self, route: Route | None = None) -> dict[str, nn.Parameter]:
        """Return what heads have beside their matrices by name: all of it, or that of one route."""
        named: dict[str, nn.Parameter] = {}
        for prefix, modules in (("hidden", self.layers), ("norm", self.norms)):
            module = modules if route is None else self._of(modules, route)
            named |= {} if module is None else dict(module.named_parameters(prefix=prefix))
        return named

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
        return files | ({folder / HIDDEN: self.hidden()} if self.hidden() else {})

    def _of(self, modules: nn.ModuleDict, route: Route) -> nn.Module | None:
        name = "generated" if route is Route.GENERATED and "generated" in modules else "real"
        return modules[name] if name in modules else None  # noqa: SIM401
