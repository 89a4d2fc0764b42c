"""Pairs as row numbers: who is held out, and what one batch holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from torch import Tensor

from gmail_align.alignment.pair_index import Numbers, PairFile, Rows
from gmail_align.data.batches import same_mask
from gmail_align.errors import DataError
from gmail_align.features.pixels import Pixels
from gmail_align.features.store import Features
from gmail_align.runtime import stable_seed

_LEAST_IMAGES = 4


@dataclass(frozen=True)
class PairRows:
    """For each of n pairs, its row in every table; row -1 where a table does not hold it."""

    generated: Rows
    """Shape (n,): rows of the generated pixels."""
    real: Rows
    """Shape (n,): rows of the real pixels."""
    frozen: Rows
    """Shape (n,): rows of the frozen features of real images."""
    text: Rows
    """Shape (n,): rows of the text features."""
    image_group: Rows
    """Shape (n,): one number a real image."""
    text_group: Rows
    """Shape (n,): one number a text; equal texts have equal numbers."""
    short: Rows | None = None
    """Shape (n,): rows of the features of first sentences."""
    short_group: Rows | None = None
    """Shape (n,): one number a first sentence."""

    def __len__(self) -> int:
        return len(self.generated)

    def take(self, places: Rows) -> PairRows:
        """Return the pairs at ``places``."""
        return PairRows(
            **{name: rows[places] for name, rows in vars(self).items() if rows is not None}
        )


@dataclass(frozen=True)
class Tables:
    """What is computed or decoded once; all of it mapped from files."""

    generated: Pixels
    real: Pixels | None
    frozen: Features | None
    texts: Features | None
    """None where the encoder has no text tower."""
    patches: Features | None = None
    """Means of the frozen patch tokens of real images, row by row with ``frozen``."""
    short: Features | None = None
    """Of the captions' first sentences, where the text loss reads them."""
    tokens: Int32[Tensor, "n row"] | None = None
    """Of captions, row by row with ``texts``, where the text tower is trained."""
    short_tokens: Int32[Tensor, "n row"] | None = None
    """The same of first sentences."""


@dataclass(frozen=True)
class Batch:
    """One training batch of b pairs, before normalisation of the pixels.

    Of the images there are p: this process's part of the pairs, all b without other processes.
    """

    generated: UInt8[Tensor, "p 3 s s"]
    real: UInt8[Tensor, "p 3 s s"] | None
    frozen: Float[Tensor, "b d"] | None
    texts: Float[Tensor, "b d"] | None
    same: Bool[Tensor, "b b"] | None
    """Pairs that share a real image or a text, and are no negatives of each other."""
    patches: Float[Tensor, "b width"] | None = None
    """Means of the frozen patch tokens of the real images."""
    groups: Int64[Tensor, "b 2"] | None = None
    """The real image and the text of each pair as numbers, in place of ``same``."""
    short: Float[Tensor, "b d"] | None = None
    """Features of the captions' first sentences."""
    same_short: Bool[Tensor, "b b"] | None = None
    """Pairs that share a real image or a first sentence."""
    tokens: Int32[Tensor, "p row"] | None = None
    """Of the captions (see ``tokens.py``), where the text tower is trained."""
    short_tokens: Int32[Tensor, "p row"] | None = None
    """Of their first sentences."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Return the batch in memory that a GPU reads directly."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        found: dict[str, Any] = {
            name: None if value is None else change(value) for name, value in vars(self).items()
        }
        return Batch(**found)


@dataclass(frozen=True)
class Wanted:
    """What of a batch is copied out of the tables."""

    real: bool
    """The pixels of real images."""
    frozen: bool
    """The frozen features of real images."""
    part: slice = field(default_factory=lambda: slice(None))
    """The pairs whose images this process embeds."""
    groups: bool = False
    """Group numbers in place of the table of pairs that belong together."""
    replaced: npt.NDArray[np.bool_] | None = None
    """Shape (b,): pairs that show their real image where the generated one would be."""
    pinned: bool = False
    """Whether the copies lie in memory that a GPU reads directly."""


def hold_out(groups: Rows, share: float, limit: int, seed: int) -> npt.NDArray[np.bool_]:
    """Mark the pairs of a random share of the real images, at least 2 and at most half of them.

    Args:
        groups: Shape (n,): the real image of each pair.
        share: Share of the real images.
        limit: Most real images.
        seed: Seed of the choice.

    Returns:
        Shape (n,); an image has all its pairs marked or none.

    Raises:
        DataError: there are fewer than 4 real images.
    """
    images = np.unique(groups)
    if len(images) < _LEAST_IMAGES:
        raise DataError(
            f"the pairs hold {len(images)} real images: alignment needs at least {_LEAST_IMAGES}, "
            "two of them for its guard"
        )
    count = min(max(2, round(share * len(images))), limit, len(images) // 2)
    rng = np.random.default_rng(stable_seed(seed, "hold out"))
    return np.isin(groups, rng.permutation(images)[:count])


class TrainingPairs:
    """Pairs in a file, and where the tables hold what they are made of."""

    def __init__(self, file: PairFile, real: Rows | None, frozen: Rows | None) -> None:
        """Remember where things are.

        Args:
            file: The pairs, by numbers.
            real: Numbers of the real images that the table of pixels holds, ascending and row by
                row; None where it holds all of them.
            frozen: The same of the table of frozen features.
        """
        self._file, self._real, self._frozen = file, real, frozen

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self._file)

    @property
    def image_group(self) -> Numbers:
        """Shape (n,): one number a real image."""
        return self._file.column("real")

    def take(self, places: npt.NDArray[np.integer[Any]]) -> PairRows:
        """Return the pairs at ``places``."""
        generated, real, caption, text, first = self._file.take(places).T
        return PairRows(
            generated=generated,
            real=_rows_of(real, self._real),
            frozen=_rows_of(real, self._frozen),
            text=caption,
            image_group=real,
            text_group=text,
            short=caption,
            short_group=first,
        )


def gather(tables: Tables, rows: PairRows, wanted: Wanted) -> Batch:
    """Copy the rows of a batch out of the tables."""
    own, places = rows.take(np.arange(len(rows))[wanted.part]), torch.from_numpy(rows.frozen)
    generated = tables.generated.array[torch.from_numpy(own.generated)]
    if wanted.replaced is not None and tables.real is not None:
        chosen = wanted.replaced[wanted.part]
        generated[torch.from_numpy(chosen)] = tables.real.array[torch.from_numpy(own.real[chosen])]
    real = tables.real.array[torch.from_numpy(own.real)] if wanted.real and tables.real else None
    groups = np.stack([rows.image_group, rows.text_group], axis=1) if wanted.groups else None
    same = None if wanted.groups else same_mask(rows.image_group, rows.text_group)
    short = same_short = None
    frozen = tables.tokens is None
    if tables.short is not None and rows.short is not None and rows.short_group is not None:
        short = tables.short.array[torch.from_numpy(rows.short)] if frozen else None
        same_short = torch.from_numpy(same_mask(rows.image_group, rows.short_group))
    batch = Batch(
        generated=generated,
        real=real,
        frozen=tables.frozen.array[places] if wanted.frozen and tables.frozen else None,
        texts=tables.texts.array[torch.from_numpy(rows.text)] if tables.texts and frozen else None,
        same=None if same is None else torch.from_numpy(same),
        patches=tables.patches.array[places] if tables.patches else None,
        groups=None if groups is None else torch.from_numpy(groups),
        short=short,
        same_short=same_short,
        tokens=_some(tables.tokens, own.text),
        short_tokens=_some(tables.short_tokens, own.short),
    )
    return batch.pinned() if wanted.pinned else batch


def _some(table: Tensor | None, rows: Rows | None) -> Tensor | None:
    return None if table is None or rows is None else table[torch.from_numpy(rows)]


def _rows_of(numbers: Rows, held: Rows | None) -> Rows:
    """Return rows, or -1 for what the table does not hold (it is never asked for)."""
    if held is None:
        return numbers
    places = np.searchsorted(held, numbers).clip(max=len(held) - 1)
    return np.where(held[places] == numbers, places, -1)
