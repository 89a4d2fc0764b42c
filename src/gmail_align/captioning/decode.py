"""Captions out of prompts, by transformers' ``generate`` with its key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TopPLogitsWarper,
)

from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.prompt import Prompt, cache_name, mean_log_prob, positions_of
from gmail_align.encoders.language import LanguageModel


@dataclass(frozen=True)
class Decoded:
    """One predicted caption."""

    continuation: str
    """What goes on from the prompt, blanks included, without special tokens."""
    log_prob: float
    """Mean log-probability of its tokens, end-of-text included, in nats (ClipCap's score)."""
    cut: bool = False
    """Whether it stopped at its longest length, before an end."""

    @property
    def text(self) -> str:
        """The caption."""
        return self.continuation.strip()


@dataclass(frozen=True)
class Decoding:
    """How captions are searched for; see ``PredictConfig``."""

    method: Literal["beam", "greedy", "nucleus"] = "beam"
    """Beam search, the likeliest token each time, or a draw from the likeliest tokens."""
    beam: int = 5
    """Beams of ``beam``."""
    max_tokens: int = 67
    """Longest caption in tokens, end-of-text included."""
    length_penalty: float = 1.0
    """Power of the length that a beam's log-probability is divided by."""
    top_p: float = 0.8
    """Probability of the tokens that ``nucleus`` draws from."""
    temperature: float = 1.0
    """Divides the logits that ``nucleus`` draws from."""
    ends: tuple[int, ...] = ()
    """Tokens that end a caption beside end-of-text."""

    @classmethod
    def chosen(cls, how: PredictConfig, own: Decoding) -> Decoding:
        """Return the search that a prediction chooses for a captioner of this decoding."""
        return cls(
            method=how.method,
            beam=how.beam or own.beam,
            max_tokens=own.max_tokens,
            length_penalty=how.length_penalty,
            top_p=how.top_p,
            temperature=how.temperature,
            ends=own.ends,
        )


class SeededNucleus(LogitsProcessor):  # type: ignore[misc]
    """Turns the likeliest token of each row into a draw from its nucleus (Holtzman et al. 2020).

    The draw is by Gumbel noise out of a generator of the row's own, so a caption does not depend on
    what else is in the batch.
    """

    def __init__(self, seeds: Sequence[int], top_p: float, temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.nucleus, self.temperature = TopPLogitsWarper(top_p), temperature

    def __call__(
        self, input_ids: Integer[Tensor, "b t"], scores: Float[Tensor, "b v"]
    ) -> Float[Tensor, "b v"]:
        """Add the noise to the scores of the nucleus; the others stay at minus infinity."""
        kept: Tensor = self.nucleus(input_ids, scores.float() / self.temperature)
        width = scores.shape[1]
        noise = [torch.empty(width).exponential_(generator=g) for g in self.generators]
        return kept - torch.stack(noise).clamp_(min=1e-30).log().to(kept.device)


@torch.inference_mode()
def decode(
    language: LanguageModel,
    prompt: Prompt,
    how: Decoding | None = None,
    *,
    seeds: Sequence[int] | None = None,
) -> list[Decoded]:
    """Predict one caption a prompt. A caption has at least one token before its end.

    Args:
        language: The language model, in evaluation mode.
        prompt: What each caption starts from.
        how: The search; beam search with five beams when None.
        seeds: Seed of each caption, for ``nucleus``.
    """
    how = how or Decoding()
    end: int = language.tokenizer.eos_token_id
    ends = (end, *how.ends)
    beams = how.beam if how.method == "beam" else 1
    settings = GenerationConfig(
        max_new_tokens=how.max_tokens,
        min_new_tokens=1,
        num_beams=beams,
        do_sample=False,
        length_penalty=how.length_penalty,
        eos_token_id=list(ends),
        pad_token_id=end,
        use_cache=True,
    )
    draws = LogitsProcessorList()
    if how.method == "nucleus":
        draws.append(SeededNucleus(seeds or (), how.top_p, how.temperature))
    model: Any = language.model
    cache = prefill(model, prompt)
    repeated = deepcopy(cache)
    repeated.batch_repeat_interleave(beams)
    ids: Tensor = model.generate(
        inputs_embeds=prompt.embeddings,
        attention_mask=prompt.attended(),
        generation_config=settings,
        logits_processor=draws,
        **{cache_name(model): repeated},
    )
    mask = up_to_end(ids, ends)
    scores = mean_log_prob(model, prompt, ids, mask, cache).tolist()
    texts = language.tokenizer.batch_decode(ids, skip_special_tokens=True)
    cut = [not ended for ended in is_end(ids, ends).any(dim=1).tolist()]
    return [Decoded(*one) for one in zip(texts, scores, cut, strict=True)]


def prefill(model: PreTrainedModel, prompt: Prompt) -> DynamicCache:
    """Run each prompt but its last embedding through the model.

    ``generate`` alone would run the prompt once a beam.
    """
    cache, attended = DynamicCache(config=model.config), prompt.attended()
    before = attended.shape[1] - 1
    if before:
        model.base_model(
            inputs_embeds=prompt.embeddings[:, :-1],
            attention_mask=attended[:, :-1],
            use_cache=True,
            **{cache_name(model): cache},
            **positions_of(model, attended[:, :-1], before),
        )
    return cache


def is_end(ids: Integer[Tensor, "b t"], ends: Sequence[int]) -> Bool[Tensor, "b t"]:
    """Mark the tokens that end a caption."""
    return torch.isin(ids, torch.tensor(list(ends), device=ids.device))


def up_to_end(ids: Integer[Tensor, "b t"], ends: Sequence[int]) -> Bool[Tensor, "b t"]:
    """Mask the tokens up to the first that ends a caption, that one included."""
    marked = is_end(ids, ends)
    ended = marked.cumsum(1)
    return (ended == 0) | ((ended == 1) & marked)
