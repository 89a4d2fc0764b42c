"""Captions out of features: beam search by transformers' ``generate``, with its key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from gmail_align.captioning.clipcap import ClipCap


@dataclass(frozen=True)
class Decoded:
    """One predicted caption."""

    text: str
    """The caption, without special tokens."""
    log_prob: float
    """Mean log-probability of its tokens, end-of-text included, in nats (ClipCap's score)."""


@torch.inference_mode()
def decode(
    model: ClipCap,
    tokenizer: PreTrainedTokenizerBase,
    features: Float[Tensor, "b d"],
    *,
    beam: int = 5,
    max_tokens: int = 67,
) -> list[Decoded]:
    """Predict one caption a feature, by beam search with scores normalised by length.

    A caption has at least one token before its end.

    Raises:
        DataError: the features are of another width than the captioner's.
    """
    model.eval()
    prefix = model.prefix(features)
    end = tokenizer.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=max_tokens,
        min_new_tokens=1,
        num_beams=beam,
        do_sample=False,
        length_penalty=1.0,
        eos_token_id=end,
        pad_token_id=end,
        use_cache=True,
    )
    attended = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
    gpt2: Any = model.gpt2
    ids: Tensor = gpt2.generate(
        inputs_embeds=prefix, attention_mask=attended, generation_config=settings
    )
    mask = up_to_end(ids, end)
    scores = model.mean_log_prob(features, ids, mask).tolist()
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [Decoded(text.strip(), score) for text, score in zip(texts, scores, strict=True)]


def up_to_end(ids: Int[Tensor, "b t"], end: int) -> Bool[Tensor, "b t"]:
    """Mask the tokens up to the first end-of-text of each row, that one included."""
    ended = (ids == end).cumsum(1)
    return (ended == 0) | ((ended == 1) & (ids == end))
