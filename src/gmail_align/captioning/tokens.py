"""Captions as one padded table of tokens, made once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gmail_align.captioning.prompt import CaptionBatch, Prompt
from gmail_align.data.mapped import blocks, map_spool, spans, spool, store_rows
from gmail_align.errors import DataError
from gmail_align.progress import say


@dataclass(frozen=True)
class TokenTable:
    """Tokenised captions, mapped from files: memory does not grow with them."""

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
    plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    truncated = 0
    with spool() as flat, spool() as ends:
        count = 0
        for block in blocks(texts):
            folded = [" ".join(text.split()) for text in block]
            for row in tokenizer(folded, **plain)["input_ids"]:
                if not row:
                    raise DataError(f"caption number {count} does not hold any text: remove it")
                truncated += len(row) + end > max_tokens
                flat.write(np.asarray(row[:max_tokens], np.int32).data)
                ends.write(np.int64(flat.tell() // 4).tobytes())
                count += 1
        tokens, stops = map_spool(flat, np.int32), map_spool(ends, np.int64)
    if not len(stops):
        raise DataError("there are no captions to train on: give at least one")
    parts = (np.diff(stops[s], prepend=stops[s.start - 1] if s.start else 0) for s in spans(count))
    lengths = store_rows((np.minimum(part + end, max_tokens) for part in parts), np.int64)
    width = int(lengths.max())

    def padded() -> Iterator[npt.NDArray[np.int32]]:
        start = 0
        for span in spans(count):
            table = np.full((span.stop - span.start, width), tokenizer.eos_token_id, np.int32)
            for row, stop in zip(table, stops[span].tolist(), strict=True):
                row[: stop - start] = tokens[start:stop]
                start = stop
            yield table

    table = store_rows(padded(), np.int32).reshape(count, width)
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
