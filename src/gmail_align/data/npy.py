"""Arrays that users saved with numpy: plain ``.npy`` files, never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmail_align.errors import DataError

_MAGIC = (b"\x93NUMPY", b"PK")


def read_floats(path: Path, axes: tuple[int, ...] = (2,)) -> Tensor:
    """Read finite numbers as float32.

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
    bad = int((~np.isfinite(array)).any(axis=tuple(range(1, array.ndim))).sum())
    if bad:
        raise DataError(f"{bad} of {len(array)} rows of {path} hold NaN or infinity: extract again")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise DataError(f"{path} holds numbers that float32 cannot hold: scale them down")
    return torch.from_numpy(rows)


def read_integers(path: Path) -> list[int]:
    """Read a vector of integers.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    array = _load(path)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}: a vector of integers is needed"
        )
    return [int(number) for number in array]


def _load(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """Load one array.

    Raises:
        DataError: the file cannot be read, is damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if not start.startswith(_MAGIC):
            raise DataError(f"{path} is not a .npy file: write it with numpy.save")
        if start.startswith(b"PK"):
            raise DataError(f"{path} is an archive of arrays: save the one array with numpy.save")
        # Mapping the file checks its length, so a header cannot ask for more memory than it has.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except DataError:
        raise
    except Exception as error:  # numpy's parser of headers raises errors of many kinds
        raise DataError(f"{path} is damaged, or not a .npy array: {error}") from error
