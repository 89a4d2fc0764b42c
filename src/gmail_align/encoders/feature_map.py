"""A map of features that stands behind any encoder: what ``align features`` learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import gelu, linear

from gmail_align.artifacts import write_bytes
from gmail_align.encoders.stored import require_finite
from gmail_align.errors import DataError, ModelError, damage_explained

HEAD: Final = "head.safetensors"
KIND: Final = "feature_head"
"""Kind of the artifact that holds such a map."""
_AFFINE: Final = {"matrix", "shift"}
_BENT: Final = {"inner", "offset", "outer"}


@dataclass(frozen=True)
class Bend:
    """What an MLP adds to an affine map: ``outer gelu(inner x + offset)``."""

    inner: Float[Tensor, "width d"]
    offset: Float[Tensor, " width"]
    outer: Float[Tensor, "d width"]


@dataclass(frozen=True)
class FeatureMap:
    """``x -> matrix x + shift``, and what an MLP adds, if there is one."""

    matrix: Float[Tensor, "d d"]
    shift: Float[Tensor, " d"]
    bend: Bend | None = None

    @classmethod
    def identity(cls, dim: int) -> FeatureMap:
        """Return the map that leaves features as they are."""
        return cls(torch.eye(dim), torch.zeros(dim))

    @property
    def dim(self) -> int:
        """How many numbers a feature has."""
        return len(self.shift)

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Map features row by row.

        Raises:
            DataError: they are of another width.
        """
        if features.shape[1] != self.dim:
            raise DataError(
                f"these features have {features.shape[1]} numbers, but the head was learnt on "
                f"{self.dim}: give features of the same encoder"
            )
        mapped: Tensor = linear(features, self.matrix, self.shift)
        if self.bend is None:
            return mapped
        return mapped + gelu(linear(features, self.bend.inner, self.bend.offset)) @ (
            self.bend.outer.T
        )

    def save(self, folder: Path) -> None:
        """Write the map as one safetensors file: ``matrix``, ``shift`` and an MLP's tensors."""
        tensors = {"matrix": self.matrix, "shift": self.shift}
        tensors |= {} if self.bend is None else vars(self.bend)
        plain = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
        write_bytes(folder / HEAD, save(plain, {"format": "pt"}))

    @classmethod
    def load(cls, folder: Path) -> FeatureMap:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: the file is missing or damaged, or holds NaN.
        """
        path = folder / HEAD
        with damage_explained(path, ModelError, "align the features again"):
            tensors = load_file(path)
        require_finite(tensors.items(), path, "align the features again")
        affine = {name: tensors.pop(name) for name in sorted(_AFFINE & set(tensors))}
        if set(affine) == _AFFINE and not tensors:
            return cls(affine["matrix"], affine["shift"])
        if set(affine) == _AFFINE and set(tensors) == _BENT:
            return cls(affine["matrix"], affine["shift"], Bend(**tensors))
        raise ModelError(f"{path} does not hold a head of features: align the features again")
