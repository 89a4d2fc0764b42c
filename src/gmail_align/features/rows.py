"""Files of equally long rows: filled batch by batch, and read without torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import safe_open

from gmail_align.artifacts import Artifact, atomic_file, read_jsonl
from gmail_align.errors import full_disk_explained
from gmail_align.progress import progress

FEATURES, IDS, KEY = "features.safetensors", "ids.jsonl", "features"
T = TypeVar("T")


def read_rows(features: Artifact, ids: Iterable[str]) -> np.ndarray:
    """Return the rows of these ids in an artifact of features."""
    places = {name: row for row, name in enumerate(read_jsonl(features.path(IDS)))}
    with safe_open(features.path(FEATURES), framework="np") as file:
        rows: np.ndarray = file.get_tensor(KEY)[[places[name] for name in ids]]
    return rows


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot; one that is there stays.

    Raises:
        DiskFullError: no space is left.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as file, atomic_file(target) as copy:
            shutil.copyfileobj(file, copy)


@dataclass(frozen=True)
class RowFile:
    """The shape of one file: a header, then ``count`` rows of ``row_bytes``."""

    path: Path
    count: int
    row_bytes: int
    header: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the finished file."""
        return len(self.header) + self.count * self.row_bytes


def fill_rows(
    target: RowFile,
    batch: int,
    load: Callable[[range], object],
    make: Callable[[object], np.ndarray],
    *,
    label: str,
    unit: str,
) -> None:
    """Write every row of ``target``; the file gets its name when it is complete.

    Args:
        target: The file.
        batch: Rows made at a time; a run that was killed goes on at a multiple of it.
        load: Row range -> input of ``make``; called in a thread, one batch ahead.
        make: Input -> rows as an array of ``len(range)`` rows.
        label: Name shown with the progress.
        unit: Name of a row there.

    Raises:
        DiskFullError: no space is left.
    """
    if target.path.exists() and target.path.stat().st_size == target.size:
        return
    part = target.path.with_name(target.path.name + ".tmp")
    starts = range(0, target.count, batch)

    def rows_of(index: int) -> range:
        return range(starts[index], min(starts[index] + batch, target.count))

    with full_disk_explained(target.path):
        with part.open("r+b" if part.exists() else "w+b") as file:
            done = _resume(file.fileno(), target, batch)
            file.seek(0, os.SEEK_END)
            with (
                progress(label, target.count, unit, done=done) as bar,
                prefetch(lambda index: load(rows_of(index)), len(starts)) as fetch,
            ):
                for index in range(done // batch, len(starts)):
                    file.write(np.ascontiguousarray(make(fetch(index))).data)
                    file.flush()
                    bar.advance(len(rows_of(index)))
            os.fsync(file.fileno())
        os.replace(part, target.path)


def _resume(handle: int, target: RowFile, batch: int) -> int:
    """Cut an unfinished file at its last whole batch (or write the header) and count its rows."""
    rows = max(0, os.fstat(handle).st_size - len(target.header)) // target.row_bytes
    rows = min(rows // batch * batch, target.count // batch * batch)
    if rows == 0:
        os.ftruncate(handle, 0)
        os.pwrite(handle, target.header, 0)
        return 0
    os.ftruncate(handle, len(target.header) + rows * target.row_bytes)
    return rows


@contextmanager
def prefetch(load: Callable[[int], T], count: int) -> Iterator[Callable[[int], T]]:
    """Open a version of ``load`` that loads item ``i + 1`` in a thread when ``i`` is asked for.

    ``load`` is a pure function of ``i``, so order and repetition do not matter.

    Args:
        load: Index -> item.
        count: Indices at and beyond this are never loaded ahead.
    """
    pending: dict[int, Future[T]] = {}
    with ThreadPoolExecutor(1) as pool:

        def fetch(index: int) -> T:
            future = pending.pop(index, None)
            for other in pending.values():
                other.cancel()
            pending.clear()
            item = load(index) if future is None else future.result()
            if index + 1 < count:
                pending[index + 1] = pool.submit(load, index + 1)
            return item

        yield fetch
