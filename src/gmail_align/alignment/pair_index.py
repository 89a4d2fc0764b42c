"""Pairs as numbers in a file: what a batch reads of them, whatever their number.

Ids and texts are numbered in the order in which they first come. Numbering goes through a database
in a temporary file and rows are read from where they lie, so memory does not grow with the pairs.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from gmail_align.artifacts import Artifact, atomic_file, begin
from gmail_align.data.pairs import Pair, iter_pairs
from gmail_align.data.unique import temporary_database
from gmail_align.encoders.long_clip import first_sentence

Rows = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]

COLUMNS: Final = ("generated", "real", "caption", "text", "first")
"""Numbers of the generated image, the real image, the caption, its text and its first sentence."""
ROWS: Final = "rows.i32"
_BYTES: Final = 4 * len(COLUMNS)
_BLOCK: Final = 65_536
_CACHE: Final = 2_048
"""KiB of the database that are kept in memory."""


class PairFile:
    """Rows of :data:`COLUMNS`, read from a file when they are asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._count = os.fstat(file.fileno()).st_size // _BYTES

    @classmethod
    def open(cls, path: Path) -> PairFile:
        """Open a file of rows."""
        file = path.open("rb")
        found = cls(file)
        weakref.finalize(found, file.close)
        return found

    @classmethod
    def of(cls, blocks: Iterator[Numbers], folder: Path) -> PairFile:
        """Write rows to a temporary file inside ``folder`` and open it."""
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with the PairFile
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=np.int32).data)
        file.flush()
        found = cls(file)
        weakref.finalize(found, file.close)
        return found

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._count

    def take(self, places: npt.NDArray[np.integer]) -> Rows:
        """Return the rows at ``places``, shape (k, columns)."""
        handle = self._file.fileno()
        read = (os.pread(handle, _BYTES, int(place) * _BYTES) for place in places)
        return np.frombuffer(b"".join(read), np.int32).reshape(-1, len(COLUMNS)).astype(np.int64)

    def blocks(self) -> Iterator[Numbers]:
        """Yield all rows, some at a time."""
        for start in range(0, len(self), _BLOCK):
            data = os.pread(self._file.fileno(), _BLOCK * _BYTES, start * _BYTES)
            yield np.frombuffer(data, np.int32).reshape(-1, len(COLUMNS))

    def column(self, name: str) -> Numbers:
        """Return one column of all rows."""
        place, found, start = COLUMNS.index(name), np.empty(len(self), np.int32), 0
        for block in self.blocks():
            found[start : start + len(block)] = block[:, place]
            start += len(block)
        return found


def index_pairs(pairs: Artifact, out: Path) -> Artifact:
    """Number what pairs are made of; an artifact of kind ``pair-index``.

    Its counts name how many different things of each column there are.
    """
    draft = begin(out, "pair-index", {"columns": list(COLUMNS)}, {"pairs": pairs})
    if draft.complete is not None:
        return draft.complete
    with closing(_Numbering()) as numbering, atomic_file(draft.path(ROWS)) as file:
        for pair in iter_pairs(pairs):
            parts = (
                pair.generated_image_id,
                pair.real_image_id,
                pair.caption_id,
                pair.text,
                first_sentence(pair.text),
            )
            row = [numbering.number(*part) for part in zip(COLUMNS, parts, strict=True)]
            file.write(np.array(row, np.int32).data)
        counts = numbering.counts
    return draft.finish({f"{name}s": counts[name] for name in COLUMNS})


def chosen_pairs(pairs: Artifact, places: npt.NDArray[np.integer]) -> list[Pair]:
    """Return the pairs at ``places``, which ascend, without holding the others."""
    wanted, found = iter(places.tolist()), []
    place = next(wanted, -1)
    for number, pair in enumerate(iter_pairs(pairs)):
        if number == place:
            found.append(pair)
            place = next(wanted, -1)
    return found


class _Numbering:
    """Numbers for names of several kinds, by a hash of 16 bytes each."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COLUMNS, 0)
        self._database = temporary_database()
        self._database.execute(f"PRAGMA cache_size=-{_CACHE}").close()
        for kind in COLUMNS:
            columns = "(name BLOB PRIMARY KEY, number INTEGER)"
            self._database.execute(f"CREATE TABLE {kind} {columns} WITHOUT ROWID").close()

    def number(self, kind: str, name: str) -> int:
        """Return the number of a name; new ones get the next."""
        key = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
        row: Sequence[int] | None = self._database.execute(
            f"SELECT number FROM {kind} WHERE name = ?", (key,)
        ).fetchone()
        if row is not None:
            return row[0]
        number = self.counts[kind]
        self._database.execute(f"INSERT INTO {kind} VALUES (?, ?)", (key, number)).close()
        self.counts[kind] += 1
        return number

    def close(self) -> None:
        """Remove the database."""
        self._database.close()
