"""Files of rows: every row once, in order, also after a kill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmail_align.features.rows import RowFile, fill_rows, prefetch


def _fill(target: RowFile, batch: int, die_at: int | None = None) -> list[range]:
    made: list[range] = []

    def make(item: object) -> np.ndarray:
        assert isinstance(item, range)
        if die_at is not None and item.start >= die_at:
            raise KeyboardInterrupt
        made.append(item)
        return np.array([[row, row + 1, 7] for row in item], dtype=np.uint8)

    fill_rows(target, batch, lambda rows: rows, make, label="rows", unit="rows")
    return made


@given(
    count=st.integers(1, 23),
    batch=st.integers(1, 8),
    die_at=st.integers(0, 23),
    cut=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_a_killed_fill_ends_with_the_same_bytes(
    count: int, batch: int, die_at: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    target = RowFile(folder / "x", count, 3, b"head")
    try:
        _fill(target, batch, die_at)
    except KeyboardInterrupt:
        part = folder / "x.tmp"
        part.write_bytes(part.read_bytes()[: max(0, part.stat().st_size - cut)])
        made = _fill(target, batch)
        assert not made or made[0].start % batch == 0
    rows = [value for row in range(count) for value in (row, row + 1, 7)]
    assert target.path.read_bytes() == b"head" + bytes(rows)
    assert _fill(target, batch) == []
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_prefetch_loads_each_item_once_and_stops_at_the_end() -> None:
    loaded: list[int] = []

    def load(index: int) -> int:
        loaded.append(index)
        return index * index

    with prefetch(load, 5) as fetch:
        assert [fetch(index) for index in range(5)] == [0, 1, 4, 9, 16]
    assert loaded == [0, 1, 2, 3, 4]


def test_prefetch_may_start_anywhere_and_jump() -> None:
    with prefetch(lambda index: -index, 100) as fetch:
        assert [fetch(index) for index in (7, 8, 3, 4, 99)] == [-7, -8, -3, -4, -99]


def test_prefetch_raises_what_loading_raised() -> None:
    def load(index: int) -> int:
        if index == 1:
            raise ValueError("broken")
        return index

    with prefetch(load, 3) as fetch:
        assert fetch(0) == 0
        with pytest.raises(ValueError, match="broken"):
            fetch(1)
