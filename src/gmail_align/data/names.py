"""Long lists of names that lie in files: memory does not grow with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise
from tempfile import SpooledTemporaryFile
from typing import Any, Final, SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.int64]
T = TypeVar("T")

_BLOCK: Final = 65_536
_SMALL: Final = 2**20
"""Bytes that stay in memory."""
_ROW_BITS: Final = 32
_LOW: Final = np.uint64(2**_ROW_BITS - 1)


class Names(Sequence[str]):
    """Names in order, mapped from nameless temporary files.

    A name is found by its hash, and then compared. Equal names are found at the first of them.
    """

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Return names as they are, or a copy of another sequence."""
        return names if isinstance(names, cls) else cls(names)

    def __init__(self, names: Iterable[str]) -> None:
        with SpooledTemporaryFile(_SMALL) as texts, SpooledTemporaryFile(_SMALL) as ends:
            end = 0
            for block in blocks(names):
                coded = [_coded(name) for name in block]
                texts.write(b"".join(coded))
                own = end + np.cumsum([len(one) for one in coded], dtype=np.int64)
                ends.write(own.data)
                end = int(own[-1])
            self._texts, self._ends = _mapped(texts, np.uint8), _mapped(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> str | list[str]:
        """Return the name of a row, or those of a slice."""
        rows = range(len(self))[at]
        if isinstance(rows, int):
            return self._block(rows, rows + 1)[0]
        if rows.step == 1:
            return self._block(rows.start, max(rows.start, rows.stop))
        return [self[row] for row in rows]

    def _block(self, start: int, stop: int) -> list[str]:
        ends = [int(self._ends[start - 1]) if start else 0, *self._ends[start:stop].tolist()]
        data, first = self._texts[ends[0] : ends[-1]].tobytes(), ends[0]
        return [
            data[begin - first : end - first].decode("utf-8", "surrogatepass")
            for begin, end in pairwise(ends)
        ]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self[start : start + _BLOCK]

    def __eq__(self, other: object) -> bool:
        """Tell whether another sequence has the same names in the same order."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.row(name) >= 0

    def row(self, name: str) -> int:
        """Return the row of a name, -1 where it is not there."""
        return next(self._places(name), -1)

    def rows(self, names: Iterable[str]) -> Row:
        """Return the row of each name, -1 where it is not there."""
        return store_rows((self._rows(block) for block in blocks(names)), np.int64)

    def every_row(self, name: str) -> list[int]:
        """Return every row of a name, in order."""
        return list(self._places(name))

    def _places(self, name: str) -> Iterator[int]:
        """Yield the rows of a name: those of its hash, compared one by one."""
        key, order = _hashes([name])[0], self._order
        for place in range(int(np.searchsorted(order, key)), len(order)):
            if order[place] & ~_LOW != key:
                return
            row = int(order[place] & _LOW)
            if self[row] == name:
                yield row

    def _rows(self, names: Sequence[str]) -> Row:
        hashes, order = _hashes(names), self._order
        places = np.searchsorted(order, hashes)
        first = order[np.minimum(places, len(order) - 1)] if len(order) else hashes | _LOW
        alike = (first & ~_LOW == hashes) & (places < len(order))
        rows = np.where(alike, (first & _LOW).astype(np.int64), -1)
        for number in np.flatnonzero(alike).tolist():
            place = int(places[number])
            while rows[number] >= 0 and self[int(rows[number])] != names[number]:
                place += 1  # another name of the same hash
                more = place < len(order) and order[place] & ~_LOW == hashes[number]
                rows[number] = int(order[place] & _LOW) if more else -1
        return rows

    @cached_property
    def _order(self) -> npt.NDArray[np.uint64]:
        """Half a hash and the row of every name, sorted where they lie."""

        def numbered() -> Iterator[npt.NDArray[np.uint64]]:
            row = 0
            for block in blocks(self):
                yield _hashes(block) | np.arange(row, row + len(block), dtype=np.uint64)
                row += len(block)

        order: npt.NDArray[np.uint64] = store_rows(numbered(), np.uint64)
        order.sort()
        return order


def blocks(items: Iterable[T], size: int = _BLOCK) -> Iterator[list[T]]:
    """Cut items into lists of at most ``size``, none of them empty."""
    rest = iter(items)
    while block := list(islice(rest, size)):
        yield block


def store_rows(parts: Iterable[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Join arrays in a nameless temporary file, flat; a small one stays in memory."""
    with SpooledTemporaryFile(_SMALL) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)
        return _mapped(file, dtype)


def _mapped(file: SpooledTemporaryFile[bytes], dtype: type[np.generic]) -> npt.NDArray[Any]:
    if file.tell() <= _SMALL:
        file.seek(0)
        return np.frombuffer(bytearray(file.read()), dtype)
    file.flush()
    array: npt.NDArray[Any] = np.memmap(file, dtype, "r+").view(np.ndarray)
    return array


def _hashes(names: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return hashes whose lower half is 0."""
    digests = [hashlib.blake2b(_coded(name), digest_size=8).digest() for name in names]
    hashes: npt.NDArray[np.uint64] = np.frombuffer(b"".join(digests), np.uint64) & ~_LOW
    return hashes


def _coded(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")
