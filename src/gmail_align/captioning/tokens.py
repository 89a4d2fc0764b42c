"""Captions as one padded table of tokens, made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gmail_align.errors import DataError
from gmail_align.progress import say


@dataclass(frozen=True)
class TokenTable:
    """Tokenised captions."""

    ids: Int[Tensor, "n t"]
    """Tokens (int32), each caption followed by end-of-text, padded on the right with it."""
    lengths: Int[Tensor, " n"]
    """Tokens of each caption, its end-of-text included unless that was left out."""
    truncated: int
    """Captions that were cut; these carry no end-of-text."""

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Int[Tensor, " b"]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Return tokens and mask of ``rows``, padded to the longest of them."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        mask = torch.arange(width) < lengths[:, None]
        return self.ids[rows, :width].long(), mask


def tokenise(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    end: bool = True,
) -> TokenTable:
    """Tokenise captions, white space folded, and end each with the tokenizer's end-of-text token.

    A caption that spells a special token out is text like any other.

    Args:
        texts: The captions.
        tokenizer: What splits them.
        max_tokens: Longest row; what is longer is cut.
        end: Count end-of-text among a caption's tokens. ClipCap's released code does not.

    Raises:
        DataError: there is no caption, or one holds no token.
    """
    if not texts:
        raise DataError("there are no captions to train on: give at least one pair")
    folded = [" ".join(text.split()) for text in texts]
    plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    rows = tokenizer(folded, **plain)["input_ids"]
    empty = sum(not row for row in rows)
    if empty:
        first = next(index for index, row in enumerate(rows) if not row)
        raise DataError(f"{empty} captions hold no text (the first is number {first}): remove them")
    lengths = np.minimum([len(row) + end for row in rows], max_tokens)
    table = np.full((len(rows), int(lengths.max())), tokenizer.eos_token_id, dtype=np.int32)
    for index, row in enumerate(rows):
        cut = row[:max_tokens]
        table[index, : len(cut)] = cut
    truncated = sum(len(row) + end > max_tokens for row in rows)
    return TokenTable(torch.from_numpy(table), torch.from_numpy(lengths), truncated)


def say_cut(tokens: TokenTable, max_tokens: int) -> None:
    """Tell the user how many captions were cut, if any."""
    if tokens.truncated:
        say(
            f"{tokens.truncated} of {len(tokens)} captions are longer than max_tokens"
            f" ({max_tokens}) and were cut"
        )


def pad_left(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Return tokens padded on the left with 0, and the mask that is True at tokens."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) >= width - lengths[:, None]
