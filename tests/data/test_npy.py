"""Plain arrays: what is wrong with a file is said of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmail_align.data.npy import read_floats
from gmail_align.errors import DataError


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([[1, "a"]], dtype=object), "Python objects"),
        (np.full((2, 2), 1e30, np.float32), "beyond"),
        (np.full((2, 2), -1e200), "beyond"),
        (np.full((2, 2), np.inf, np.float16), "infinity"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, array: np.ndarray[Any, Any], said: str
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=rf"a\.npy.*{said}"):
        read_floats(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", [">f8", "<f2", "u1", "i8"])
def test_numbers_of_any_kind_and_order_become_float32(tmp_path: Path, kind: str) -> None:
    rows = np.asfortranarray(np.arange(6).reshape(2, 3).astype(kind))
    np.save(tmp_path / "a.npy", rows)
    assert read_floats(tmp_path / "a.npy").tolist() == rows.tolist()
