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

_SIDE: Final = 8
_ENTRIES: Final = 8_000_000  # of the matrix of distances that are held at a time
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
        return difference_hash(store.read(image_id))

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
    """Yield (row of ``first``, row of ``second``, bits that differ) of every pair that is near.

    The matrix of distances is computed in blocks, so that a million hashes against fifty thousand
    need tens of megabytes.

    Args:
        first: Shape (n, 16).
        second: Shape (m, 16).
        distance: Most bits that may differ.
    """
    if not len(first) or not len(second):
        return
    wide = min(len(second), 8192)
    tall = max(1, _ENTRIES // wide)
    for left in range(0, len(second), wide):
        signs = _signs(second[left : left + wide]).T
        for top in range(0, len(first), tall):
            alike = _signs(first[top : top + tall]) @ signs
            for row, column in np.argwhere(alike >= BITS - 2 * distance):
                differing = int(BITS - alike[row, column]) // 2
                yield int(top + row), int(left + column), differing


def _signs(hashes: HashArray) -> npt.NDArray[np.float32]:
    """Return bits as +1 and -1: two rows' product is the bits alike minus those that differ."""
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
