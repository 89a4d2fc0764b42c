"""Features and labels of other people's making: plain ``.npy`` files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmail_align.errors import DataError


def load_features(path: Path, axes: tuple[int, ...] = (2,)) -> Tensor:
    """Read finite numbers from a ``.npy`` file as float32; never unpickles.

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


def load_integers(path: Path) -> Tensor:
    """Read a vector of integers from a ``.npy`` file as int64; never unpickles.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    array = _load(path)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}: a vector of integers is needed"
        )
    if array.dtype.kind == "u":
        array = np.minimum(array.astype(np.uint64), np.uint64(np.iinfo(np.int64).max))
    return torch.from_numpy(array.astype(np.int64))


def _load(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        with path.open("rb") as file:
            if not file.read(6).startswith((b"\x93NUMPY", b"PK")):
                raise DataError(f"{path} is no .npy file: write it with numpy.save")
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays: save the one array with numpy.save")
    return array
