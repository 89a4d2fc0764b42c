"""A list of names in files is a list of names."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmail_align.artifacts import canonical_json, fingerprint
from gmail_align.data import names as module
from gmail_align.data.names import Names


@given(st.lists(st.text()), st.lists(st.text()))
def test_names_are_what_was_given(names: list[str], others: list[str]) -> None:
    stored = Names(names)
    assert stored == names and list(stored) == names and len(stored) == len(names)
    assert [stored[row] for row in range(len(names))] == names
    assert stored[1:] == names[1:] and stored[-2:] == names[-2:]
    rows = [names.index(name) if name in names else -1 for name in [*names, *others]]
    assert stored.rows([*names, *others]).tolist() == rows
    assert all((name in stored) == (name in names) for name in others)
    for name in [*names, *others]:
        assert stored.every_rows([name])[1].tolist() == [
            row for row, one in enumerate(names) if one == name
        ]


def test_blocks_join_and_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"image {number}" for number in range(100)]
    stored = Names(iter(names))
    assert stored == names and stored != names[1:] and stored != "image"
    assert stored.rows(reversed(names)).tolist() == list(range(99, -1, -1))
    with pytest.raises(IndexError):
        stored[100]
    monkeypatch.setattr(module, "_hashes", lambda own: module.np.zeros(len(own), module.np.uint64))
    alike = Names(names)
    assert alike.rows(["image 50", "none"]).tolist() == [50, -1]
    assert alike.every_rows(["image 50"])[1].tolist() == [50]
    assert 3 not in alike


def test_a_row_may_be_numbered_by_numpy() -> None:
    assert Names(["a", "b"])[np.int64(1)] == "b"


def test_every_row_of_some_names_and_names_of_some_rows() -> None:
    names = Names(f"n{number % 9000}" for number in range(20_000))
    owners, rows = names.every_rows(["n8999", "none", "n1"])
    assert owners.tolist() == [0, 0, 2, 2, 2]
    assert rows.tolist() == [8999, 17_999, 1, 9001, 18_001]
    assert names.take(rows[::-1]) == ["n1", "n1", "n1", "n8999", "n8999"]
    assert names.take(rows[:0]) == []
    assert np.array_equal(names.rows(names), np.arange(20_000) % 9000)


def test_columns_come_from_one_pass() -> None:
    first, second = Names.columns(iter([("a", "x y"), ("b", "")]), 2)
    assert first == ["a", "b"] and second == ["x y", ""]
    assert [list(column) for column in Names.columns([], 2)] == [[], []]


def test_names_have_the_fingerprint_of_their_list() -> None:
    names = ["a", '"quoted" \u00e9', ""]
    for value in ([], names):
        parts = ["x", {"ids": value}]
        assert fingerprint(["x", {"ids": Names(value)}]) == fingerprint(parts)
        assert fingerprint(parts) == hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]
    with pytest.raises(TypeError, match="set"):
        fingerprint({"ids": {1}})
