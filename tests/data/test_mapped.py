"""Arrays in temporary files are what numpy makes in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmail_align.data import mapped
from gmail_align.data.mapped import blocks, count_up, distinct, marked, spans, store_rows, zeros


@given(st.lists(st.integers(0, 30)), st.integers(1, 7))
def test_blocks_and_spans_cut_everything_once(items: list[int], size: int) -> None:
    cut = list(blocks(items, size))
    assert [item for block in cut for item in block] == items
    assert all(len(block) == size for block in cut[:-1])
    assert [items[span] for span in spans(len(items), size)] == cut


@given(st.lists(st.integers(0, 2**63 - 1), max_size=60))
def test_distinct_values_are_those_of_numpy(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    assert np.array_equal(distinct(array), np.unique(array))
    assert array.tolist() == values


def test_arrays_of_many_blocks_lie_in_files() -> None:
    count = 40 * mapped.BLOCK + 3
    numbers = np.random.default_rng(0).integers(0, count // 3, count)
    assert np.array_equal(distinct(numbers), np.unique(numbers))
    assert np.array_equal(count_up(count, np.int32), np.arange(count))
    flags = numbers % 5 == 0
    assert np.array_equal(marked(flags[s] for s in spans(count)), np.flatnonzero(flags))
    kept = zeros(count, np.int64)
    kept[[1, count - 1]] += 2
    assert kept.sum() == 4
    assert np.array_equal(store_rows((numbers[s] for s in spans(count)), np.int64), numbers)


@pytest.mark.parametrize("make", [distinct, lambda rows: count_up(len(rows))])
def test_memory_is_that_of_blocks(make: object) -> None:
    rows = np.arange(1_000_000)[::-1]
    tracemalloc.start()
    made = make(rows)  # type: ignore[operator]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made[-1] == len(rows) - 1
    assert peak < rows.nbytes / 2
