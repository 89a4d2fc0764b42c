"""ClipCap: an image feature becomes a prefix of word embeddings that GPT-2 goes on from.

Mokady, Hertz and Bermano, "ClipCap: CLIP Prefix for Image Captioning" (2021), the variant with an
MLP mapper and GPT-2 trained along. Three faults of the released code are mended: the end-of-text
token is trained, padding takes no part in the loss, and features are normalised in the same way in
training and in prediction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gmail_align.errors import DataError


def mlp_mapper(width: int, hidden: int, prefix_length: int) -> nn.Sequential:
    """Build ClipCap's mapper: a feature to ``prefix_length`` embeddings of ``hidden``."""
    out = prefix_length * hidden
    return nn.Sequential(nn.Linear(width, out // 2), nn.Tanh(), nn.Linear(out // 2, out))


class ClipCap(nn.Module):
    """A mapper and the GPT-2 behind it.

    Args:
        gpt2: The language model, trained along.
        width: Width of the image features.
        prefix_length: Embeddings that the mapper makes of one feature.
        normalise: L2-normalise the features first.
    """

    def __init__(
        self, gpt2: GPT2LMHeadModel, width: int, *, prefix_length: int = 10, normalise: bool = True
    ) -> None:
        super().__init__()
        self.gpt2 = gpt2
        self.width, self.prefix_length, self.normalise = width, prefix_length, normalise
        self.mapper = mlp_mapper(width, gpt2.config.n_embd, prefix_length)

    def prefix(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b k h"]:
        """Turn image features into the embeddings that a caption starts from.

        Raises:
            DataError: the features are of another width than the captioner's.
        """
        if features.shape[-1] != self.width:
            raise DataError(
                f"the features are {features.shape[-1]} wide and this captioner reads"
                f" {self.width}: extract them with the encoder it was trained on"
            )
        if self.normalise:
            features = F.normalize(features, dim=-1)
        mapped: Tensor = self.mapper(features)
        return mapped.view(len(features), self.prefix_length, -1)

    def loss(
        self,
        features: Float[Tensor, "b d"],
        input_ids: Integer[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the tokens under ``mask``, in nats a token.

        Args:
            features: One image feature a caption.
            input_ids: The captions' tokens with their end-of-text token, padded on the right.
            mask: True at tokens (end-of-text included), False at padding.
        """
        return self._token_losses(features, input_ids, mask).mean()

    def mean_log_prob(
        self,
        features: Float[Tensor, "b d"],
        input_ids: Integer[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
    ) -> Float[Tensor, " b"]:
        """Return each caption's log-probability divided by its tokens, ClipCap's own score."""
        losses = torch.zeros(mask.shape, device=mask.device)
        losses[mask] = self._token_losses(features, input_ids, mask)
        return -losses.sum(1) / mask.sum(1)

    def _token_losses(
        self,
        features: Float[Tensor, "b d"],
        input_ids: Integer[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
    ) -> Float[Tensor, " n"]:
        """Return the cross-entropy of every token under ``mask``, row by row.

        Attention is causal and padding stands on the right, so no token sees padding and no
        attention mask is needed. Only the states that predict a token reach the vocabulary.
        """
        words = self.gpt2.transformer.wte(input_ids)
        inputs = torch.cat([self.prefix(features), words], dim=1)
        states = self.gpt2.transformer(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = self.gpt2.lm_head(states[:, self.prefix_length - 1 : -1][mask])
        return F.cross_entropy(logits.float(), input_ids[mask].long(), reduction="none")
