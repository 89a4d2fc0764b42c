"""Perceptual hashes: 128 bits that stay nearly the same when an image is resized or re-encoded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmail_align.data.decode import to_rgb
from gmail_align.data.images import ImageStore
from gmail_align.progress import track

BITS: Final = 128
NEAR: Final = 10
"""Most bits in which two copies of one photo differ, as measured on photos that were re-encoded at
another size (see ``docs/datasets.md``)."""

HashArray = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.intp]
NearPairs = tuple[Rows, Rows, npt.NDArray[np.uint8]]
"""Rows of two arrays of hashes, and the bits in which each pair differs."""

_SIDE: Final = 8
_ENTRIES: Final = 1_000_000  # pairs that are held at a time
_KEYS: Final = 65_536
_KEY_COST: Final = 8  # cost of a pair that shares a key, over that of a pair in a block of all
_CHUNK: Final = 1024


def difference_hash(image: Image.Image) -> HashArray:
    """Return the signs of the grey gradients along rows and columns, 8 x 8 each, as 16 bytes."""
    grey = image if image.mode == "L" else to_rgb(image).convert("L")
    side = _SIDE + 1
    small = np.asarray(grey.resize((side, side), Image.Resampling.BOX), dtype=np.int16)
    along = small[:-1, 1:] > small[:-1, :-1]
    down = small[1:, :-1] > small[:-1, :-1]
    return np.packbits(np.concatenate([along.ravel(), down.ravel()]))


def hash_images(store: ImageStore, label: str = "hash") -> HashArray:
    """Return the hash of every image of a store, in the order of its ids, shape (n, 16)."""
    hashes = np.empty((len(store), BITS // 8), dtype=np.uint8)

    def one(image_id: str) -> HashArray:
        return store.reduce(image_id, difference_hash)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        rows = _in_chunks(pool, one, store.ids)
        for number, row in enumerate(track(rows, label, len(store), "images")):
            hashes[number] = row
    return hashes


def _in_chunks(pool: ThreadPoolExecutor, one: object, ids: Sequence[str]) -> Iterator[HashArray]:
    for start in range(0, len(ids), _CHUNK):
        yield from pool.map(one, ids[start : start + _CHUNK])  # type: ignore[arg-type]


def near_pairs(
    first: HashArray, second: HashArray, distance: int = NEAR
) -> Iterator[tuple[int, int, int]]:
    """Yield (row of ``first``, row of ``second``, bits that differ) of every near pair, by rows.

    Two hashes that differ in at most ``distance`` bits agree in one of ``distance`` + 1 disjoint
    sets of bits at least. So only pairs that agree in one are compared, unless these are too many
    (a large distance, or images that all look alike): then all are. Either way none is missed.

    Args:
        first: Shape (n, 16).
        second: Shape (m, 16).
        distance: Most bits that may differ.
    """
    if not len(first) or not len(second):
        return
    words = _words(first), _words(second)
    keys = [_keys(hashes, distance + 1) for hashes in (first, second)]
    shared = sum(
        int(np.bincount(one, minlength=_KEYS) @ np.bincount(other, minlength=_KEYS))
        for one, other in zip(*keys, strict=True)
    )
    if shared * _KEY_COST < len(first) * len(second):
        hits = _agreeing(words, keys, distance)
    else:
        hits = _all(words, distance)
    for rows, columns, bits in hits:
        yield from zip(rows.tolist(), columns.tolist(), bits.tolist(), strict=True)


def _words(hashes: HashArray) -> Words:
    return np.ascontiguousarray(hashes).view(np.uint64)


def _keys(hashes: HashArray, parts: int) -> npt.NDArray[np.uint16]:
    """Return up to 16 bits of each of ``parts`` sets of bits as a number, shape (parts, n).

    Neighbouring bits go into different sets, for they are often alike.
    """
    keys = np.zeros((parts, len(hashes)), dtype=np.uint16)
    for start in range(0, len(hashes), _KEYS):
        bits = np.unpackbits(hashes[start : start + _KEYS], axis=1)
        for part, row in enumerate(keys[:, start : start + _KEYS]):
            for place, column in enumerate(range(part, BITS, parts)[:16]):
                row |= bits[:, column].astype(np.uint16) << place
    return keys


def _agreeing(
    words: tuple[Words, Words], keys: Sequence[npt.NDArray[np.uint16]], distance: int
) -> Iterator[NearPairs]:
    """Compare the pairs that agree in a key; a block of rows has about ``_ENTRIES`` of them."""
    orders = [np.argsort(row, kind="stable") for row in keys[1]]
    counts = [np.bincount(row, minlength=_KEYS) for row in keys[1]]
    starts = [np.cumsum(count) - count for count in counts]
    each = np.zeros(len(words[0]), dtype=np.int64)
    for row, count in zip(keys[0], counts, strict=True):
        each += count[row]
    blocks = np.cumsum(each) // _ENTRIES
    for block in np.unique(blocks):
        low, high = np.searchsorted(blocks, [block, block + 1])
        hits = []
        for part, order in enumerate(orders):
            own = keys[0][part, low:high]
            many = counts[part][own]
            rows = np.repeat(np.arange(low, high), many)
            within = np.arange(len(rows)) - np.repeat(np.cumsum(many) - many, many)
            columns = order[np.repeat(starts[part][own], many) + within]
            rows, columns, bits = _near(words, rows, columns, distance)
            seen = np.zeros(len(rows), dtype=bool)
            for earlier in range(part):
                seen |= keys[0][earlier, rows] == keys[1][earlier, columns]
            hits.append((rows[~seen], columns[~seen], bits[~seen]))
        rows, columns, bits = (np.concatenate(column) for column in zip(*hits, strict=True))
        order = np.lexsort((columns, rows))
        yield rows[order], columns[order], bits[order]


def _near(words: tuple[Words, Words], rows: Rows, columns: Rows, distance: int) -> NearPairs:
    """Keep the pairs that differ in at most ``distance`` bits, and count those."""
    bits = np.zeros(len(rows), dtype=np.uint8)
    for word in range(BITS // 64):
        bits = bits + np.bitwise_count(words[0][rows, word] ^ words[1][columns, word])
        near = bits <= distance
        rows, columns, bits = rows[near], columns[near], bits[near]
    return rows, columns, bits


def _all(words: tuple[Words, Words], distance: int) -> Iterator[NearPairs]:
    """Compare all pairs, a block of rows at a time."""
    tall = max(1, _ENTRIES // len(words[1]))
    for top in range(0, len(words[0]), tall):
        block = words[0][top : top + tall]
        bits = np.zeros((len(block), len(words[1])), dtype=np.uint8)
        for word in range(BITS // 64):
            bits += np.bitwise_count(block[:, word, None] ^ words[1][None, :, word])
        rows, columns = np.nonzero(bits <= distance)
        yield rows + top, columns, bits[rows, columns]
