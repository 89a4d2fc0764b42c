"""ClipCap: an image feature becomes a prefix of word embeddings that GPT-2 goes on from.

Mokady, Hertz and Bermano, "ClipCap: CLIP Prefix for Image Captioning" (2021), both variants: an MLP
mapper with GPT-2 trained along, and a transformer mapper before a frozen GPT-2. Faults of the
released code are mended: the end-of-text token is trained, no token is taken for padding, and
features are scaled in the same way in training and in prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gmail_align.captioning.clipcap.mappers import build_mapper
from gmail_align.captioning.language import Prompt, mean_log_prob, token_losses
from gmail_align.captioning.shape import MapperShape
from gmail_align.errors import DataError


@dataclass(frozen=True)
class Scaling:
    """What is done to the length of a feature before it is mapped."""

    normalise: bool = True
    """Bring every feature to the length ``norm``; else it stays as it is."""
    norm: float | None = None
    """The length; 1 when None."""
    raw_in_training: bool = False
    """ClipCap's mismatch: features are scaled in prediction alone."""

    def __call__(self, features: Float[Tensor, "b d"], training: bool) -> Float[Tensor, "b d"]:
        """Scale features."""
        if not self.normalise or (training and self.raw_in_training):
            return features
        unit = F.normalize(features, dim=-1)
        return unit if self.norm is None else self.norm * unit


class ClipCap(nn.Module):
    """A mapper and the GPT-2 behind it.

    Args:
        gpt2: The language model.
        width: Width of the image features.
        shape: Shape of the mapper.
        scaling: What is done to the length of a feature.
        tune_gpt2: Train the language model along; a frozen one never drops out anything.
    """

    def __init__(
        self,
        gpt2: GPT2LMHeadModel,
        width: int,
        shape: MapperShape | None = None,
        *,
        scaling: Scaling | None = None,
        tune_gpt2: bool = True,
    ) -> None:
        super().__init__()
        self.gpt2 = gpt2.requires_grad_(tune_gpt2)
        self.width, self.tune_gpt2 = width, tune_gpt2
        self.shape, self.scaling = shape or MapperShape(), scaling or Scaling()
        self.mapper = build_mapper(self.shape, width, gpt2.config.n_embd)

    def train(self, mode: bool = True) -> ClipCap:
        """Switch dropout on or off, in what is trained."""
        super().train(mode)
        if not self.tune_gpt2:
            self.gpt2.eval()
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def prompt(self, features: Float[Tensor, "b d"]) -> Prompt:
        """Turn image features into the embeddings that a caption starts from.

        Raises:
            DataError: the features are of another width than the captioner's.
        """
        if features.shape[-1] != self.width:
            raise DataError(
                f"the features are {features.shape[-1]} wide and this captioner reads"
                f" {self.width}: extract them with the encoder it was trained on"
            )
        mapped = self.mapper(self.scaling(features, self.training))
        return Prompt(mapped.view(len(features), self.shape.prefix_length, -1))

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
        return token_losses(self.gpt2, self.prompt(features), input_ids, mask).mean()

    def mean_log_prob(
        self,
        features: Float[Tensor, "b d"],
        input_ids: Integer[Tensor, "b t"],
        mask: Bool[Tensor, "b t"],
    ) -> Float[Tensor, " b"]:
        """Return each caption's log-probability divided by its tokens, ClipCap's own score."""
        return mean_log_prob(self.gpt2, self.prompt(features), input_ids, mask)
