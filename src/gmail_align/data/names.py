"""Long lists of names that lie in files: memory does not grow with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import pairwise
from typing import Final, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from gmail_align.data.mapped import blocks, map_spool, spans, spool, store_rows

Row = npt.NDArray[np.int64]

_ROW_BITS: Final = 32
_LOW: Final = np.uint64(2**_ROW_BITS - 1)


class Names(Sequence[str]):
    """Names in order, mapped from nameless temporary files.

    A name is found by its hash, and then compared. Equal names are found at the first of them.
    """

    _texts: npt.NDArray[np.uint8]
    _ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Return names as they are, or a copy of another sequence."""
        return names if isinstance(names, cls) else cls(names)

    @classmethod
    def columns(cls, rows: Iterable[Sequence[str]], count: int) -> list[Names]:
        """Return names that come row by row, as so many columns."""
        made = [cls.__new__(cls) for _ in range(count)]
        with ExitStack() as stack:
            files = [[stack.enter_context(spool()) for _ in range(2)] for _ in made]
            lengths = [0] * count
            for block in blocks(rows):
                for number, column in enumerate(zip(*block, strict=True)):
                    coded = list(map(_coded, column))
                    files[number][0].write(b"".join(coded))
                    own = np.cumsum([len(one) for one in coded], dtype=np.int64) + lengths[number]
                    files[number][1].write(own.data)
                    lengths[number] = int(own[-1])
            for one, (texts, ends) in zip(made, files, strict=True):
                one._texts, one._ends = map_spool(texts, np.uint8), map_spool(ends, np.int64)
        return made

    def __init__(self, names: Iterable[str]) -> None:
        (made,) = self.columns(((name,) for name in names), 1)
        self._texts, self._ends = made._texts, made._ends

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
        return self.take(np.asarray(rows, np.int64))

    def _block(self, start: int, stop: int) -> list[str]:
        ends = [int(self._ends[start - 1]) if start else 0, *self._ends[start:stop].tolist()]
        data, first = self._texts[ends[0] : ends[-1]].tobytes(), ends[0]
        return [_text(data[begin - first : end - first]) for begin, end in pairwise(ends)]

    def take(self, rows: Row) -> list[str]:
        """Return the names of these rows, in their order."""
        return list(map(_text, self._bytes_of(rows)))

    def _bytes_of(self, rows: Row) -> Iterator[memoryview]:
        texts, ends = self._texts.data, self._ends[rows].tolist()
        begins = np.where(rows > 0, self._ends[rows - 1], 0).tolist()
        return (texts[begin:end] for begin, end in zip(begins, ends, strict=True))

    def __iter__(self) -> Iterator[str]:
        for span in spans(len(self)):
            yield from self._block(span.start, span.stop)

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
        coded, order = _coded(name), self._order
        key = _hashes([coded])[0]
        for place in range(int(np.searchsorted(order, key)), len(order)):
            if order[place] & ~_LOW != key:
                break
            row = int(order[place] & _LOW)
            begin = int(self._ends[row - 1]) if row else 0
            if self._texts[begin : int(self._ends[row])].tobytes() == coded:
                return row
        return -1

    def rows(self, names: Iterable[str]) -> Row:
        """Return the row of each name, -1 where it is not there."""
        return store_rows(map(self._rows, blocks(names)), np.int64)

    def every_rows(self, names: Sequence[str]) -> tuple[Row, Row]:
        """Return every row of each of some names, and before them which name each is of."""
        coded, order = list(map(_coded, names)), self._order
        hashes = _hashes(coded)
        firsts = np.searchsorted(order, hashes)
        counts = np.searchsorted(order, hashes | _LOW, side="right") - firsts
        owners = np.repeat(np.arange(len(names)), counts)
        places = np.arange(len(owners)) + np.repeat(firsts - np.cumsum(counts) + counts, counts)
        rows = (order[places] & _LOW).astype(np.int64)
        same = self._same(rows, [coded[owner] for owner in owners.tolist()])
        return owners[same], rows[same]

    def _rows(self, names: Sequence[str]) -> Row:
        """Look up a block of names: each at the first place of its hash, then at the next ones."""
        coded, order = list(map(_coded, names)), self._order
        hashes = _hashes(coded)
        by_hash = np.argsort(hashes)  # neighbours are near each other in the file
        places, rows = np.empty(len(names), np.intp), np.full(len(names), -1)
        places[by_hash] = np.searchsorted(order, hashes[by_hash])
        left = np.flatnonzero(places < len(order))
        while len(left):
            found = order[places[left]]
            alike = found & ~_LOW == hashes[left]
            left, own = left[alike], (found[alike] & _LOW).astype(np.int64)
            same = self._same(own, [coded[number] for number in left.tolist()])
            rows[left[same]] = own[same]
            left = left[~same]  # another name of the same hash
            places[left] += 1
            left = left[places[left] < len(order)]
        return rows

    def _same(self, rows: Row, coded: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Tell which rows hold the name that is given for them."""
        pairs = zip(self._bytes_of(rows), coded, strict=True)
        return np.fromiter((mine == given for mine, given in pairs), np.bool_, len(coded))

    @cached_property
    def _order(self) -> npt.NDArray[np.uint64]:
        """Half a hash and the row of every name, sorted where they lie."""

        def numbered() -> Iterator[npt.NDArray[np.uint64]]:
            for span in spans(len(self)):
                rows = np.arange(span.start, span.stop)
                yield _hashes(list(self._bytes_of(rows))) | rows.astype(np.uint64)

        order: npt.NDArray[np.uint64] = store_rows(numbered(), np.uint64)
        order.sort()
        return order


def _hashes(coded: Sequence[bytes | memoryview]) -> npt.NDArray[np.uint64]:
    """Return hashes whose lower half is 0."""
    digests = [hashlib.blake2b(one, digest_size=8).digest() for one in coded]
    hashes: npt.NDArray[np.uint64] = np.frombuffer(b"".join(digests), np.uint64) & ~_LOW
    return hashes


def _coded(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _text(data: bytes | memoryview) -> str:
    return str(data, "utf-8", "surrogatepass")
