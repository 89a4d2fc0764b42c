from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gmail_align.errors import DataError
from gmail_align.importing import streams
from gmail_align.importing.streams import (
    json_items,
    json_keys,
    json_lines,
    json_pairs,
    text_lines,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(VALUES, max_size=6),
    st.dictionaries(st.text("abc", max_size=3), VALUES, max_size=4),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)
@example([], {"": 0.0}, 1, None, False)
@example([-1.5e-07, 1e100, 12, "5.e"], {"a": 2.5}, 3, 1, True)
def test_a_stream_of_small_blocks_reads_what_json_reads(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[Any],
    others: dict[str, Any],
    block: int,
    indent: int | None,
    plain: bool,
) -> None:
    path = tmp_path_factory.mktemp("j") / "a.json"
    whole = {"images": items, **others} if block % 2 else {**others, "images": items}
    before, streams._BLOCK = streams._BLOCK, block  # type: ignore[misc]
    try:
        path.write_text(json.dumps(whole, indent=indent, ensure_ascii=plain), encoding="utf-8")
        assert list(json_items(path, "images")) == items
        assert dict(json_pairs(path)) == whole
        assert (json_keys(path) or {}).keys() == whole.keys()
        assert list(json_items(path)) == []
        path.write_bytes(gzip.compress(json.dumps(items).encode()))
        assert list(json_items(path)) == items
        assert json_keys(path) is None
    finally:
        streams._BLOCK = before  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2", "[1 2]", "[1,]", '{"a": 1', '{"a" 1}', "{1: 2}", '["a', "nonsense", "[" * 99_999],
)
def test_what_is_no_json_is_named_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    if not text or text == "nonsense":
        assert list(json_items(path)) == []
        return
    with pytest.raises(DataError, match=r"a\.json is not json"):
        list(json_items(path))
        list(json_pairs(path))


def test_lines_that_are_no_json_or_no_text_are_values_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\nno\n\xff\n[2]')
    found = list(json_lines(path))
    assert [number for number, _ in found] == [1, 3, 4, 5]
    assert [value for _, value in found if not isinstance(value, DataError)] == [{"a": 1}, [2]]
    assert [str(value) for _, value in found if isinstance(value, DataError)] == [
        "is not JSON",
        "is not UTF-8",
    ]


def test_a_line_that_never_ends_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_LINE", 100)
    path = tmp_path / "a.txt"
    path.write_text("one\n" + "x" * 1000 + "\nthree")
    (first, second, third) = text_lines(path)
    assert (first, third) == ((1, "one"), (3, "three"))
    assert str(second[1]) == "is longer than 100 bytes"


def test_files_that_are_missing_or_cut_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no annotation file at"):
        list(text_lines(tmp_path / "none"))
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"some text\n" * 1000)[:-20])
    with pytest.raises(DataError, match="is damaged"):
        list(text_lines(path))
