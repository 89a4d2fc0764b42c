"""ClipCap's two mappers: an image feature to the embeddings that a caption starts from.

Mokady, Hertz and Bermano, "ClipCap: CLIP Prefix for Image Captioning" (2021). The transformer's
modules carry the names of the released code, so that its weights load as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gmail_align.captioning.clipcap.config import MapperShape


def mlp_mapper(width: int, hidden: int, prefix_length: int) -> nn.Sequential:
    """Build ClipCap's mapper: a feature to ``prefix_length`` embeddings of ``hidden``."""
    out = prefix_length * hidden
    return nn.Sequential(nn.Linear(width, out // 2), nn.Tanh(), nn.Linear(out // 2, out))


def build_mapper(shape: MapperShape, width: int, hidden: int) -> nn.Module:
    """Draw a mapper from features of ``width`` to embeddings of ``hidden``."""
    if shape.kind == "mlp":
        return mlp_mapper(width, hidden, shape.prefix_length)
    return TransformerMapper(
        width,
        hidden,
        shape.prefix_length,
        clip_length=shape.clip_length,
        layers=shape.layers,
        heads=shape.heads,
    )


class Attention(nn.Module):
    """Projections around torch's attention; queries, keys and values have no bias."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(hidden, hidden, bias=False)
        self.to_keys_values = nn.Linear(hidden, 2 * hidden, bias=False)
        self.project = nn.Linear(hidden, hidden)

    def forward(
        self, states: Float[Tensor, "b n h"], others: Float[Tensor, "b m h"]
    ) -> Float[Tensor, "b n h"]:
        """Let ``states`` look at ``others``."""
        keys, values = self.to_keys_values(others).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            self._split(self.to_queries(states)), self._split(keys), self._split(values)
        )
        projected: Tensor = self.project(attended.transpose(1, 2).reshape(states.shape))
        return projected

    def _split(self, states: Tensor) -> Tensor:
        batch, length, hidden = states.shape
        return states.view(batch, length, self.heads, hidden // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, ReLU, Linear, twice as wide inside."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, 2 * hidden)
        self.fc2 = nn.Linear(2 * hidden, hidden)

    def forward(self, states: Float[Tensor, "b n h"]) -> Float[Tensor, "b n h"]:
        """Map every state by itself."""
        mapped: Tensor = self.fc2(F.relu(self.fc1(states)))
        return mapped


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a shortcut."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden)
        self.attn = Attention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = FeedForward(hidden)

    def forward(
        self, states: Float[Tensor, "b n h"], others: Float[Tensor, "b m h"] | None = None
    ) -> Float[Tensor, "b n h"]:
        """Look at ``others``, which are not normed, or at the normed states themselves."""
        normed = self.norm1(states)
        seen: Tensor = states + self.attn(normed, normed if others is None else others)
        mapped: Tensor = self.mlp(self.norm2(seen))
        return seen + mapped


class Transformer(nn.Module):
    """A stack of layers."""

    def __init__(self, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(hidden, heads) for _ in range(layers))

    def forward(self, states: Float[Tensor, "b n h"]) -> Float[Tensor, "b n h"]:
        """Pass the states through all layers."""
        for layer in self.layers:
            states = layer(states)
        return states


class TransformerMapper(nn.Module):
    """ClipCap's mapper for a frozen language model.

    The feature becomes ``clip_length`` embeddings, learned constants are put behind them, and what
    the transformer makes of the constants is the prefix.

    Args:
        width: Width of the features.
        hidden: Width of the language model's embeddings.
        prefix_length: Number of constants.
        clip_length: Embeddings that the feature is spread over.
        layers: Layers of the transformer.
        heads: Attention heads of a layer.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        prefix_length: int,
        *,
        clip_length: int = 40,
        layers: int = 8,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.clip_length = clip_length
        self.transformer = Transformer(hidden, layers, heads)
        self.linear = nn.Linear(width, clip_length * hidden)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, hidden))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b k h"]:
        """Return the prefix of each feature."""
        spread = self.linear(features).unflatten(-1, (self.clip_length, -1))
        constants = self.prefix_const.expand(len(features), -1, -1)
        mapped: Tensor = self.transformer(torch.cat([spread, constants], dim=1))
        return mapped[:, self.clip_length :]
