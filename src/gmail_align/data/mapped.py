"""Arrays that lie in nameless temporary files: the memory of a process does not grow with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
T = TypeVar("T")

BLOCK: Final = 8_192
"""Items that are held at a time."""
_SMALL: Final = 2**20
"""Bytes that stay in memory."""


def blocks(items: Iterable[T], size: int = BLOCK) -> Iterator[list[T]]:
    """Cut items into lists of at most ``size``, none of them empty."""
    rest = iter(items)
    while block := list(islice(rest, size)):
        yield block


def spans(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Cut rows 0..count-1 into slices of at most ``size``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def spool(folder: Path | None = None) -> SpooledTemporaryFile[bytes]:
    """Open a file that :func:`map_spool` maps; a small one stays in memory."""
    return SpooledTemporaryFile(_SMALL, dir=None if folder is None else str(folder))


def map_spool(file: SpooledTemporaryFile[bytes], dtype: npt.DTypeLike) -> Array:
    """Return what was written to a file of :func:`spool` as a flat array, which may be changed."""
    if file.tell() <= _SMALL:
        file.seek(0)
        return np.frombuffer(bytearray(file.read()), dtype)
    file.flush()
    array: Array = np.memmap(file, dtype, "r+").view(np.ndarray)
    return array


def store_rows(parts: Iterable[Array], dtype: npt.DTypeLike, folder: Path | None = None) -> Array:
    """Join arrays, flat; the file lies in ``folder``, by default in that of temporary files."""
    with spool(folder) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)
        return map_spool(file, dtype)


def zeros(count: int, dtype: npt.DTypeLike) -> Array:
    """Return so many zeros."""
    return store_rows((np.zeros(s.stop - s.start, dtype) for s in spans(count)), dtype)


def count_up(count: int, dtype: npt.DTypeLike = np.int64) -> Array:
    """Return 0..count-1."""
    return store_rows((np.arange(s.start, s.stop, dtype=dtype) for s in spans(count)), dtype)


def marked(flags: Iterable[Array]) -> Array:
    """Return the places that are not 0, ascending, of flags that come a block at a time."""

    def places() -> Iterator[Array]:
        start = 0
        for part in flags:
            yield np.flatnonzero(part) + start
            start += len(part)

    return store_rows(places(), np.int64)


def distinct(values: Array) -> Array:
    """Return the different values, ascending, as ``numpy.unique`` does."""
    ordered = store_rows((values[span] for span in spans(len(values))), values.dtype)
    ordered.sort()

    def firsts() -> Iterator[Array]:
        before = ordered[:0]
        for span in spans(len(ordered)):
            block = ordered[span]
            new = np.ones(len(block), np.bool_)
            new[1:] = block[1:] != block[:-1]
            new[:1] = len(before) == 0 or block[0] != before[-1]
            before = block[-1:]
            yield block[new]

    return store_rows(firsts(), values.dtype)
