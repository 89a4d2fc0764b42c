"""Captions as one padded table of tokens, made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gmail_align.captioning.prompt import CaptionBatch, Prompt
from gmail_align.errors import DataError
from gmail_align.progress import say

_BLOCK = 10_000


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

    def behind(self, prompt: Prompt, rows: Int[Tensor, " b"]) -> CaptionBatch:
        """Put the captions of ``rows`` behind their prompts, on the prompts' device."""
        ids, mask = self.batch(rows)
        device = prompt.embeddings.device
        return CaptionBatch(prompt, ids.to(device), mask.to(device))


def tokenise(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    end: bool = True,
) -> TokenTable:
    """Tokenise captions, white space folded, and end each with the tokenizer's end-of-text token.

    A caption that spells a special token out is text like any other. Texts are read once, a block
    at a time, and not kept.

    Args:
        texts: The captions.
        tokenizer: What splits them.
        max_tokens: Longest row; longer captions are cut.
        end: Count end-of-text among a caption's tokens. ClipCap's released code does not.

    Raises:
        DataError: there is no caption, or one holds no token.
    """
    rows: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    truncated = 0
    stream = iter(texts)
    while block := list(islice(stream, _BLOCK)):
        folded = [" ".join(text.split()) for text in block]
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        for row in tokenizer(folded, **plain)["input_ids"]:
            if not row:
                raise DataError(f"caption number {len(rows)} does not hold any text: remove it")
            truncated += len(row) + end > max_tokens
            rows.append(np.asarray(row[:max_tokens], dtype=np.int32))
    if not rows:
        raise DataError("there are no captions to train on: give at least one")
    lengths = np.asarray([min(len(row) + end, max_tokens) for row in rows])
    table = np.full((len(rows), int(lengths.max())), tokenizer.eos_token_id, dtype=np.int32)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return TokenTable(torch.from_numpy(table), torch.from_numpy(lengths), truncated)


def say_cut(tokens: TokenTable, max_tokens: int) -> None:
    """Print how many captions were cut, if any."""
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
