"""Samples packed into rows of a token budget, exactly: no sample sees another.

Rows are planned from lengths alone, before anything is loaded. Positions restart with every sample,
and neither an attention mask nor a cache is used, which is when transformers keeps packed samples
apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gmail_align.errors import DataError
from gmail_align.runtime import stable_seed
from gmail_align.vlm.conversations import Conversation
from gmail_align.vlm.templates import Layout

_OPEN_ROWS = 256


@dataclass(frozen=True)
class Sample:
    """One conversation as tokens."""

    sample_id: str
    ids: Int[Tensor, " t"]
    learnt: Bool[Tensor, " t"]
    image_ids: tuple[str, ...]
    source: int = 0
    """Which set of images its images belong to."""

    @classmethod
    def make(cls, conversation: Conversation, layout: Layout, most: int, source: int = 0) -> Sample:
        """Tokenise a conversation.

        Raises:
            DataError: nothing of it is learnt, nothing stands before an answer, or it is longer
                than ``most`` tokens.
        """
        segments = layout.segments(conversation)
        ids = [token for part, _ in segments for token in part]
        learnt = [flag for part, flag in segments for _ in part]
        if not any(learnt):
            raise DataError(f"sample {conversation.sample_id} does not have an answer to learn")
        if learnt[0]:
            raise DataError(f"sample {conversation.sample_id} does not have a prompt: give one")
        if len(ids) > most:
            raise DataError(
                f"sample {conversation.sample_id} has {len(ids)} tokens and a row {most}: raise"
                " row_tokens, or remove the sample"
            )
        return cls(
            conversation.sample_id,
            torch.tensor(ids, dtype=torch.int32),
            torch.tensor(learnt),
            conversation.image_ids,
            source,
        )


@dataclass(frozen=True)
class Plan:
    """Which samples share a row, in every epoch."""

    lengths: Sequence[int]
    """Tokens of each sample."""
    budget: int
    """Tokens of a row."""
    seed: int
    made: dict[int, list[list[int]]] = field(default_factory=dict, compare=False, repr=False)
    """The epochs that were planned last."""

    def epoch(self, number: int) -> list[list[int]]:
        """Return the rows of an epoch, a pure function of the seed and the number.

        Samples in a random order go into the first row with room, among the last 256 rows.
        """
        if number not in self.made:
            self.made.pop(number - 2, None)
            self.made[number] = self._plan(number)
        return self.made[number]

    def _plan(self, number: int) -> list[list[int]]:
        order = np.random.default_rng(stable_seed(self.seed, "rows", number)).permutation(
            len(self.lengths)
        )
        rows: list[list[int]] = []
        room: list[int] = []
        for sample in order.tolist():
            length = self.lengths[sample]
            start = max(0, len(rows) - _OPEN_ROWS)
            for row in range(start, len(rows)):
                if room[row] >= length:
                    rows[row].append(sample)
                    room[row] -= length
                    break
            else:
                rows.append([sample])
                room.append(self.budget - length)
        return rows

    def batch(self, step: int, size: int) -> list[list[int]]:
        """Return the rows of a step: ``size`` of all epochs' rows, one epoch after another."""
        batch: list[list[int]] = []
        first, epoch = step * size, 0
        while len(batch) < size:
            rows = self.epoch(epoch)
            if first < len(rows):
                batch += rows[first : first + size - len(batch)]
            first, epoch = max(0, first - len(rows)), epoch + 1
        return batch

    def steps(self, epochs: float, size: int) -> int:
        """Return the steps that so many epochs take."""
        whole = sum(len(self.epoch(number)) for number in range(int(epochs)))
        part = (epochs % 1) * len(self.epoch(int(epochs))) if epochs % 1 else 0
        return max(1, -int(-(whole + part) // size))


class PackedRows(NamedTuple):
    """Rows of tokens; what stands behind the last sample of a row is padding."""

    ids: Int[Tensor, "b t"]
    positions: Int[Tensor, "b t"]
    """Positions, from 0 in every sample and in the padding."""
    learnt: Bool[Tensor, "b t"]
    """True at tokens that are learnt."""
    samples: tuple[Sample, ...]
    """The samples in the order in which their images are placed."""


def pack(rows: Sequence[Sequence[Sample]]) -> PackedRows:
    """Lay samples out in rows, as wide as the widest."""
    width = max(sum(len(sample.ids) for sample in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    positions, learnt = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        for start, stop, sample in _places(row):
            ids[number, start:stop] = sample.ids
            learnt[number, start:stop] = sample.learnt
            positions[number, start:stop] = torch.arange(stop - start)
        filled = sum(len(sample.ids) for sample in row)
        positions[number, filled:] = torch.arange(width - filled)
    return PackedRows(ids, positions, learnt, tuple(sample for row in rows for sample in row))


def _places(row: Sequence[Sample]) -> Iterator[tuple[int, int, Sample]]:
    start = 0
    for sample in row:
        yield start, start + len(sample.ids), sample
        start += len(sample.ids)
