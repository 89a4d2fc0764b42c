"""Features with their captions, as batches of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gmail_align.captioning.tokens import TokenTable, tokenise
from gmail_align.data.batches import batch_indices
from gmail_align.features.store import Features

Rows = Sequence[tuple[str, str]]
"""Pairs of a feature's id and a caption of it."""

Batch = tuple[Float[Tensor, "b d"], Int[Tensor, "b t"], Bool[Tensor, "b t"]]
"""Features, tokens and the mask that is True at tokens."""


@dataclass(frozen=True)
class CaptionSet:
    """Captions, tokenised once, and the feature that each belongs to."""

    features: Float[Tensor, "n d"]
    """The features, left where the store has them (memory-mapped)."""
    rows: Int[Tensor, " m"]
    """The feature's row of each caption."""
    tokens: TokenTable
    """The captions."""

    @classmethod
    def make(
        cls, source: Features, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_tokens: int
    ) -> CaptionSet:
        """Tokenise ``rows`` and find their features.

        Raises:
            DataError: there is no caption, one holds no text, or its feature is missing.
        """
        tokens = tokenise([text for _, text in rows], tokenizer, max_tokens)
        return cls(source.array, source.rows(name for name, _ in rows), tokens)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """Return the batch of a step, a pure function of ``(seed, step)``."""
        return self._take(torch.from_numpy(batch_indices(step, size, len(self), seed)))

    def in_order(self, size: int) -> Iterator[Batch]:
        """Yield all captions, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self._take(torch.arange(start, min(start + size, len(self))))

    def _take(self, captions: Int[Tensor, " b"]) -> Batch:
        ids, mask = self.tokens.batch(captions)
        return self.features[self.rows[captions]].float(), ids, mask
