"""What a language model says of a caption behind a prompt of embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import Cache, GPT2LMHeadModel


@dataclass(frozen=True)
class Prompt:
    """Embeddings that captions start from."""

    embeddings: Float[Tensor, "b k h"]
    """One prompt a row."""
    mask: Bool[Tensor, "b k"] | None = None
    """False at padding, which the last embedding never is; None where there is none."""

    def attended(self) -> Integer[Tensor, "b k"]:
        """Return the mask as transformers takes it."""
        shape, device = self.embeddings.shape[:2], self.embeddings.device
        mask = torch.ones(shape, device=device) if self.mask is None else self.mask
        return mask.long()

    def positions(self) -> Integer[Tensor, "b k"]:
        """Return the position of each embedding, padding not counted."""
        return (self.attended().cumsum(1) - 1).clamp(min=0)


def token_losses(
    gpt2: GPT2LMHeadModel,
    prompt: Prompt,
    input_ids: Integer[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    cache: Cache | None = None,
) -> Float[Tensor, " n"]:
    """Return the cross-entropy of every token under ``mask``, row by row, in nats.

    Attention is causal and padding of captions stands on the right, so no token sees it; only that
    of prompts has to be masked. Only the states that predict a token reach the vocabulary.

    Args:
        gpt2: The language model.
        prompt: What stands before each caption.
        input_ids: Captions, padded on the right.
        mask: True at the tokens that count.
        cache: Keys and values of the prompt but its last embedding, when these are known; it grows.
    """
    start = prompt.embeddings if cache is None else prompt.embeddings[:, -1:]
    first = start.shape[1]
    inputs = torch.cat([start, gpt2.transformer.wte(input_ids)], dim=1)
    extra: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        extra = {"past_key_values": cache, "use_cache": True}
    if prompt.mask is not None:
        attended = torch.cat([prompt.attended(), torch.ones_like(input_ids).long()], dim=1)
        positions = (attended.cumsum(1) - 1).clamp(min=0)
        extra |= {"attention_mask": attended, "position_ids": positions[:, -inputs.shape[1] :]}
    states = gpt2.transformer(inputs_embeds=inputs, **extra).last_hidden_state
    logits = gpt2.lm_head(states[:, first - 1 : -1][mask])
    return F.cross_entropy(logits.float(), input_ids[mask].long(), reduction="none")


def mean_log_prob(
    gpt2: GPT2LMHeadModel,
    prompt: Prompt,
    input_ids: Integer[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    cache: Cache | None = None,
) -> Float[Tensor, " b"]:
    """Return each caption's log-probability divided by its tokens, ClipCap's own score."""
    losses = torch.zeros(mask.shape, device=mask.device)
    losses[mask] = token_losses(gpt2, prompt, input_ids, mask, cache)
    return -losses.sum(1) / mask.sum(1)
