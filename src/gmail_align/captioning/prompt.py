"""Prompts of embeddings, and how likely a language model finds the captions behind them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import Cache, PreTrainedModel


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


class CaptionBatch(NamedTuple):
    """Captions behind prompts."""

    prompt: Prompt
    input_ids: Integer[Tensor, "b t"]
    """Captions, padded on the right."""
    mask: Bool[Tensor, "b t"]
    """True at the tokens that count."""


def token_losses(
    model: PreTrainedModel,
    prompt: Prompt,
    input_ids: Integer[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    cache: Cache | None = None,
) -> Float[Tensor, " n"]:
    """Return the cross-entropy of every token under ``mask``, row by row, in nats.

    Attention is causal and captions are padded on the right, so no token sees that padding; only
    the padding of prompts has to be masked. Logits are made for the tokens under ``mask`` alone.

    Args:
        model: The causal language model.
        prompt: What stands before each caption.
        input_ids: Captions, padded on the right.
        mask: True at the tokens that count.
        cache: Keys and values of all of the prompt but its last embedding; the call extends it.
    """
    start = prompt.embeddings if cache is None else prompt.embeddings[:, -1:]
    inputs = torch.cat([start, model.get_input_embeddings()(input_ids)], dim=1)
    options: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        options = {cache_name(model): cache, "use_cache": True}
    if prompt.mask is not None:
        attended = torch.cat([prompt.attended(), torch.ones_like(input_ids).long()], dim=1)
        options["attention_mask"] = attended
        options |= positions_of(model, attended, inputs.shape[1])
    before = torch.zeros(len(mask), start.shape[1] - 1, dtype=torch.bool, device=mask.device)
    after = torch.zeros(len(mask), 1, dtype=torch.bool, device=mask.device)
    predicting = torch.cat([before, mask, after], dim=1)  # a state predicts the token behind it
    logits = model(inputs_embeds=inputs, logits_to_keep=predicting, **options).logits
    return F.cross_entropy(logits.float(), input_ids[mask].long(), reduction="none")


def positions_of(
    model: PreTrainedModel, attended: Integer[Tensor, "b t"], last: int
) -> dict[str, Tensor]:
    """Return the positions of the ``last`` tokens, not counting padding, if the model takes them.

    Models without the argument, such as BLOOM, read positions off the attention mask.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (attended.cumsum(1) - 1).clamp(min=0)[:, -last:]}


def cache_name(model: PreTrainedModel) -> str:
    """Return the argument by which a model takes a cache: transformers renames it from 5.24 on."""
    takes = inspect.signature(model.forward).parameters
    return "cache" if "cache" in takes else "past_key_values"


def mean_log_prob(
    model: PreTrainedModel,
    prompt: Prompt,
    input_ids: Integer[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    cache: Cache | None = None,
) -> Float[Tensor, " b"]:
    """Return each caption's log-probability divided by its tokens, which is ClipCap's score."""
    losses = torch.zeros(mask.shape, device=mask.device)
    losses[mask] = token_losses(model, prompt, input_ids, mask, cache)
    return -losses.sum(1) / mask.sum(1)
