"""Features with their captions, as batches of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gmail_align.captioning.origin import require_finite
from gmail_align.captioning.tokens import TokenTable, tokenise
from gmail_align.data.batches import batch_indices
from gmail_align.errors import DataError
from gmail_align.features.store import Features

Rows = Sequence[tuple[str, str]]
"""Pairs of a feature's id and a caption of it."""

Source = tuple[Features, Rows]
"""Features and captions of them."""

Batch = tuple[Float[Tensor, "b d"], Int[Tensor, "b t"], Bool[Tensor, "b t"]]
"""Features, tokens and the mask that is True at tokens."""


@dataclass(frozen=True)
class CaptionSet:
    """Captions, tokenised once, and the feature that each belongs to."""

    arrays: tuple[Float[Tensor, "_ d"], ...]
    """The features of each source, left where the store has them (memory-mapped)."""
    rows: Int[Tensor, " m"]
    """The feature's row of each caption, counted through all sources."""
    tokens: TokenTable
    """The captions."""

    @classmethod
    def make(
        cls,
        sources: Sequence[Source],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        *,
        end: bool = True,
    ) -> CaptionSet:
        """Tokenise the captions of ``sources`` and find their features.

        Raises:
            DataError: there is no caption, one holds no text, its feature is missing, or sources
                differ in width.
        """
        widths = {source.array.shape[1] for source, _ in sources}
        if len(widths) > 1:
            raise DataError(
                f"features of {' and '.join(map(str, sorted(widths)))} dimensions cannot be mixed:"
                " extract all of them with one encoder"
            )
        texts = [text for _, rows in sources for _, text in rows]
        tokens = tokenise(texts, tokenizer, max_tokens, end=end)
        found, first = [], 0
        for source, rows in sources:
            found.append(source.rows(name for name, _ in rows) + first)
            first += len(source.array)
        return cls(tuple(source.array for source, _ in sources), torch.cat(found), tokens)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Width of the features."""
        return int(self.arrays[0].shape[1])

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """Return the batch of a step, a pure function of ``(seed, step)``."""
        return self._take(torch.from_numpy(batch_indices(step, size, len(self), seed)))

    def in_order(self, size: int) -> Iterator[Batch]:
        """Yield all captions, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self._take(torch.arange(start, min(start + size, len(self))))

    def mean_norm(self) -> float:
        """Return the mean length of the features that captions belong to, each counted once."""
        rows = self.rows.unique()
        total = sum(
            float(self.features(part).norm(dim=-1).double().sum()) for part in rows.split(65_536)
        )
        return total / len(rows)

    def features(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Return features by row, in float32."""
        if len(self.arrays) == 1:
            return self.arrays[0][rows].float()
        found = torch.empty(len(rows), self.width)
        first = 0
        for array in self.arrays:
            inside = (rows >= first) & (rows < first + len(array))
            found[inside] = array[rows[inside] - first].float()
            first += len(array)
        return found

    def _take(self, captions: Int[Tensor, " b"]) -> Batch:
        ids, mask = self.tokens.batch(captions)
        return require_finite(self.features(self.rows[captions])), ids, mask
