"""Which pairs go into which batch: a pure function of the seed and the step."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gmail_align.data.mapped import count_up, spans, store_rows
from gmail_align.runtime import random_source, stable_seed

IntArray = npt.NDArray[np.int64]
Order = npt.NDArray[np.int32]

_ROUNDS: Final = 24
_BLOCK: Final = 65_536
"""Items that are looked at at a time."""


def sample_rows(count: int, most: int, seed: int) -> IntArray:
    """Draw at most ``most`` of ``count`` rows without replacement, in their order."""
    if count <= most:
        return np.arange(count)
    return np.sort(random_source(seed).choice(count, most, replace=False))


def batch_indices(step: int, size: int, count: int, seed: int) -> IntArray:
    """Return the indices of one training step.

    The indices of all steps, one after another, are one permutation of 0..count-1 after another:
    every index comes exactly once an epoch and nothing is dropped. The batch in which an epoch
    ends is filled up from the next one, and no index comes twice in it (unless ``size`` exceeds
    ``count``).

    Args:
        step: Step of the run, from 0.
        size: Batch size.
        count: Number of items.
        seed: Seed of the run.

    Returns:
        Array of shape (size,).
    """
    return _plain(size, count, seed).indices(step)


class Batches:
    """The batches of a run over items that belong to groups (pairs that share a real image).

    As :func:`batch_indices`, and no group comes twice in a batch where that is possible, across the
    boundary of two epochs too.
    """

    def __init__(self, groups: npt.NDArray[Any], size: int, seed: int) -> None:
        """Prepare the batches.

        Args:
            groups: Shape (n,): the group of each item, numbers or strings.
            size: Batch size.
            seed: Seed of the run.

        Raises:
            ValueError: there are 0 items, or the batch size is not positive.
        """
        if not len(groups) or size < 1:
            raise ValueError(f"{len(groups)} items do not make batches of size {size}")
        self._groups = _compact(groups)
        self._size, self._seed, self._count = size, seed, len(groups)
        self._orders: dict[int, Order] = {}

    def indices(self, step: int) -> IntArray:
        """Return the item indices of one step, shape (size,)."""
        start, parts = step * self._size, []
        stop = start + self._size
        while start < stop:
            epoch, position = divmod(start, self._count)
            end = min(self._count, position + stop - start)
            parts.append(self.order(epoch)[position:end])
            start += end - position
        return np.concatenate(parts).astype(np.int64)

    def order(self, epoch: int) -> Order:
        """Return the permutation of one epoch, shape (n,).

        It depends on the epoch before where a batch spans both; that chain ends at the last epoch
        that began with a batch of its own.
        """
        if epoch not in self._orders:
            first = epoch
            while self._carried(first) and first - 1 not in self._orders:
                first -= 1
            for number in range(first, epoch + 1):
                self._orders[number] = self._make(number)
                self._orders.pop(number - 2, None)
            self._orders = {
                key: value for key, value in self._orders.items() if abs(key - epoch) < 2
            }
        return self._orders[epoch]

    def _carried(self, epoch: int) -> int:
        """Return how many items of the epoch before share a batch with this epoch's first."""
        return epoch * self._count % self._size if self._size < self._count else 0

    def _make(self, epoch: int) -> Order:
        carried = self._carried(epoch)
        taken = self._groups[self._orders[epoch - 1][-carried:]] if carried else None
        return unique_batches(
            self._groups, self._size, stable_seed(self._seed, "epoch", epoch), taken=taken
        )


def unique_batches(
    groups: npt.NDArray[Any], size: int, seed: int, taken: npt.NDArray[Any] | None = None
) -> Order:
    """Order items at random so that no group comes twice in a batch where that is possible.

    A random order is repaired: items that clash are dealt out again among random others. Where
    groups are so large that this does not end, the batches are dealt column by column, the largest
    groups first, which succeeds whenever no group has more items than there are full batches.

    Args:
        groups: Shape (n,): the group of each item, numbers or strings.
        size: Batch size; the last batch may be smaller.
        seed: Seed of the order.
        taken: Groups of the items that the first batch already holds; it takes ``size`` less their
            number.

    Returns:
        Permutation of 0..n-1, shape (n,), of 4 bytes each.
    """
    rng = random_source(seed)
    before, own = _compact_together(groups[:0] if taken is None else taken, groups)
    held = len(before)
    order: Order = count_up(len(own), np.int32)
    rng.shuffle(order)
    for _ in range(_ROUNDS):
        clashes = _clashes(own, order, size, before)
        if not len(clashes):
            return order
        others = rng.choice(len(own), size=min(len(own), len(clashes) + 8), replace=False)
        places = np.union1d(clashes, others)
        order[places] = order[rng.permutation(places)]
    codes = _codes(np.concatenate([before, own]))
    batch = (np.arange(len(own)) + held) // size
    order = _columns(codes[held:], batch, rng).astype(np.int32)
    return _swap_apart(order, codes[held:], batch, codes[:held])


@lru_cache(maxsize=4)
def _plain(size: int, count: int, seed: int) -> Batches:
    return Batches(count_up(count, np.int32), size, seed)


def _codes(groups: npt.NDArray[Any]) -> IntArray:
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64).reshape(-1)


def _compact(groups: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return groups in as few bytes as it takes to tell them apart."""
    if groups.dtype == np.int32:
        return groups
    if not np.issubdtype(groups.dtype, np.integer):
        return _codes(groups).astype(np.int32)
    small = np.iinfo(np.int32)
    fits = not len(groups) or (groups.min() >= small.min and groups.max() <= small.max)
    parts = (groups[span] for span in spans(len(groups)))
    return store_rows(parts, np.int32) if fits else groups


def _compact_together(
    first: npt.NDArray[Any], second: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return two arrays of groups in as few bytes; equal groups stay equal."""
    if first.dtype == second.dtype == np.int32:
        return first, second
    joined = _compact(np.concatenate([first, second]))
    return joined[: len(first)], joined[len(first) :]


def _clashes(
    groups: npt.NDArray[Any], order: Order, size: int, before: npt.NDArray[Any]
) -> IntArray:
    """Return the positions whose group is in their batch already; ``before`` came first.

    Some batches are looked at at a time, so that memory does not grow with their number.
    """
    held, clashes = len(before), []
    step = max(1, _BLOCK // size) * size
    for start in range(0, held + len(order), step):
        stop = min(start + step, held + len(order))
        keys = np.concatenate(
            [before[start:held], groups[order[max(0, start - held) : max(0, stop - held)]]]
        )
        batches = np.arange(start, start + len(keys)) // size
        ranks = np.lexsort((keys, batches))
        again = (keys[ranks][1:] == keys[ranks][:-1]) & (batches[ranks][1:] == batches[ranks][:-1])
        positions = ranks[1:][again] + start - held
        clashes.append(np.sort(positions[positions >= 0]))
    return np.concatenate(clashes) if clashes else np.empty(0, dtype=np.int64)


def _columns(groups: IntArray, batch: IntArray, rng: np.random.Generator) -> IntArray:
    """Deal the items, largest groups first, to every batch's first place, then its second, ..."""
    sizes = np.bincount(groups)
    shuffled = rng.permutation(len(sizes))
    items = np.lexsort((rng.random(len(groups)), shuffled[groups], -sizes[groups]))
    place = np.arange(len(batch)) - np.searchsorted(batch, batch)
    order = np.empty(len(groups), dtype=np.int64)
    order[np.lexsort((batch, place))] = items
    return order


def _swap_apart(order: Order, groups: IntArray, batch: IntArray, before: IntArray) -> Order:
    """Swap what still clashes with an item that fits, and that it fits, where there is one."""
    size = int(np.count_nonzero(batch == 0)) + len(before)
    for place in _clashes(groups, order, size, before):
        keys = groups[order]
        mine = keys[batch == batch[place]]
        holding = batch[keys == keys[place]]
        fits = ~np.isin(keys, mine) & ~np.isin(batch, holding) & (batch != batch[place])
        if batch[place] == 0:
            fits &= ~np.isin(keys, before)
        elif np.isin(keys[place], before):
            fits &= batch != 0
        partners = np.flatnonzero(fits)
        if len(partners):
            order[[place, partners[0]]] = order[[partners[0], place]]
    return order
