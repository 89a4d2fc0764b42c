"""Arrays that users saved with numpy: plain ``.npy`` files, never unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmail_align.errors import DataError, damage_explained

_MAGIC = (b"\x93NUMPY", b"PK")
_BLOCK = 8_192
LARGEST = 1e18
"""Numbers beyond it have squares that float32 cannot hold."""


def read_floats(path: Path, axes: tuple[int, ...] = (2,)) -> Tensor:
    """Read finite numbers as float32; a file that holds these is mapped, not copied.

    Args:
        path: The file.
        axes: How many axes the array may have: 2 for (rows, dim), 3 for (classes, prompts, dim).

    Raises:
        DataError: the file cannot be read, holds something else, or a row is not finite.
    """
    array = _load(path)
    if array.ndim not in axes or array.dtype.kind not in "fiu":
        shapes = " or ".join("(rows, dim)" if n == 2 else "(classes, prompts, dim)" for n in axes)
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}: floats {shapes} are needed"
        )
    if array.size == 0:
        raise DataError(f"{path} is empty, of shape {array.shape}: at least one row is needed")
    bad = sum(_broken_rows(block) for block in _blocks(array))
    if bad:
        raise DataError(f"{bad} of {len(array)} rows of {path} hold NaN or infinity: extract again")
    if any(float(np.abs(block).max()) > LARGEST for block in _blocks(array)):
        raise DataError(f"{path} holds numbers beyond {LARGEST:g}: scale them down")
    rows = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(np.asarray(rows))


def _blocks(array: np.ndarray[Any, np.dtype[Any]]) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
    """Yield some rows at a time, so that a check does not hold as much as the array."""
    for start in range(0, len(array), _BLOCK):
        yield array[start : start + _BLOCK]


def _broken_rows(rows: np.ndarray[Any, np.dtype[Any]]) -> int:
    return int((~np.isfinite(rows)).any(axis=tuple(range(1, rows.ndim))).sum())


def read_integers(path: Path) -> list[int]:
    """Read a vector of integers.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    return [int(number) for number in _integers(path, 1, "a vector of integers is")]


def read_integer_rows(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Read a table of integers, shape (rows, columns).

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    return _integers(path, 2, "integers (rows, columns) are").astype(np.int64)


def _integers(path: Path, axes: int, what: str) -> np.ndarray[Any, np.dtype[Any]]:
    array = _load(path)
    if array.ndim != axes or array.dtype.kind not in "iu":
        raise DataError(f"{path} holds {array.dtype} of shape {array.shape}: {what} needed")
    return array


def _load(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    with damage_explained(path):
        with path.open("rb") as file:
            start = file.read(6)
        if not start.startswith(_MAGIC):
            raise DataError(f"{path} is not a .npy file: write it with numpy.save")
        if start.startswith(b"PK"):
            raise DataError(f"{path} is an archive of arrays: save the one array with numpy.save")
        # Mapping the file checks its length, so a header cannot ask for more memory than it has.
        # Pages are read when rows are, and may be written to: the file stays as it is.
        try:
            rows: np.ndarray[Any, Any] = np.load(path, mmap_mode="c", allow_pickle=False)
        except ValueError as error:
            if "Python objects" not in str(error):
                raise
            raise DataError(f"{path} holds Python objects: save an array of numbers") from error
        return rows
