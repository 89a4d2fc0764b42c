"""Shapes of mappers, apart from torch so that configurations can name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MapperShape:
    """Shape of a mapper; the last three are the transformer's alone."""

    kind: Literal["mlp", "transformer"] = "mlp"
    """ClipCap's two variants."""
    prefix_length: int = 10
    """Embeddings that it makes of one feature."""
    clip_length: int = 40
    """Embeddings that a feature is spread over first."""
    layers: int = 8
    """Layers."""
    heads: int = 8
    """Attention heads of a layer."""
