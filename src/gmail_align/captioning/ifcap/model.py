"""IFCap: a captioner that is trained on captions alone and reads images.

Lee et al., "IFCap: Image-like Retrieval and Frequency-based Entity Filtering for Zero-shot
Captioning" (EMNLP 2024). In training a caption's own text feature with noise stands for the image;
with GMAIL the aligned feature of an image generated from the caption does.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import GPT2LMHeadModel

from gmail_align.captioning.clipcap.mappers import Transformer, TransformerLayer
from gmail_align.captioning.language import Prompt, token_losses
from gmail_align.errors import DataError


def inject_noise(
    features: Float[Tensor, "b d"], variance: float, noise: Float[Tensor, "b d"]
) -> Float[Tensor, "b d"]:
    """Move unit features by ``noise`` (standard normal) times the deviation, back to unit length.

    Noise injection of CapDec and IFCap: text features come to lie where image features may.
    """
    moved = normalize(features, dim=-1) + math.sqrt(variance) * noise
    return normalize(moved, dim=-1)


class Fusion(nn.Module):
    """The feature, looking at retrieved captions, becomes a soft prompt (IFCap's fusion module).

    Args:
        width: Width of the features.
        hidden: Width of GPT-2's embeddings.
        prefix_length: Embeddings of the soft prompt, and those that the feature is spread over.
        layers: Layers of the transformer behind the one of cross-attention.
        heads: Attention heads of a layer.
    """

    def __init__(
        self, width: int, hidden: int, *, prefix_length: int = 10, layers: int = 8, heads: int = 8
    ) -> None:
        super().__init__()
        self.prefix_length = prefix_length
        self.linear = nn.Linear(width, prefix_length * hidden)
        self.retrieved = nn.Linear(width, hidden)
        self.cross = TransformerLayer(hidden, heads)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, hidden))
        self.transformer = Transformer(hidden, layers, heads)

    def forward(
        self, features: Float[Tensor, "b d"], retrieved: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b k h"]:
        """Return the soft prompt of each feature."""
        spread = self.linear(features).unflatten(-1, (self.prefix_length, -1))
        fused = self.cross(spread, self.retrieved(retrieved))
        constants = self.prefix_const.expand(len(features), -1, -1)
        mapped: Tensor = self.transformer(torch.cat([fused, constants], dim=1))
        return mapped[:, self.prefix_length :]


class IFCap(nn.Module):
    """The fusion module and the GPT-2 behind it, which is trained along.

    Args:
        gpt2: The language model.
        width: Width of the features.
        prefix_length: Embeddings of the soft prompt.
        layers: Layers of the fusion module's transformer.
        heads: Attention heads of a layer.
    """

    def __init__(
        self,
        gpt2: GPT2LMHeadModel,
        width: int,
        *,
        prefix_length: int = 10,
        layers: int = 8,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.gpt2, self.width = gpt2, width
        self.fusion = Fusion(
            width, gpt2.config.n_embd, prefix_length=prefix_length, layers=layers, heads=heads
        )

    def prompt(
        self,
        features: Float[Tensor, "b d"],
        retrieved: Float[Tensor, "b n d"],
        hard_ids: Integer[Tensor, "b t"],
        hard_mask: Bool[Tensor, "b t"],
    ) -> Prompt:
        """Put the soft prompt before the hard one.

        Args:
            features: Features of images, or what stands for them, at unit length.
            retrieved: Text features of the captions retrieved for each.
            hard_ids: Tokens of the hard prompts, padded on the left.
            hard_mask: True at tokens.

        Raises:
            DataError: the features are of another width than the captioner's.
        """
        if features.shape[-1] != self.width:
            raise DataError(
                f"the features are {features.shape[-1]} wide and this captioner reads"
                f" {self.width}: extract them with the encoder it was trained on"
            )
        soft = self.fusion(features, retrieved)
        words = self.gpt2.transformer.wte(hard_ids)
        whole = torch.ones(soft.shape[:2], dtype=torch.bool, device=soft.device)
        return Prompt(torch.cat([soft, words], dim=1), torch.cat([whole, hard_mask], dim=1))

    def loss(
        self, prompt: Prompt, input_ids: Integer[Tensor, "b t"], mask: Bool[Tensor, "b t"]
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the captions' tokens behind prompts, in nats a token."""
        return token_losses(self.gpt2, prompt, input_ids, mask).mean()
