from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gmail_align.data.classes import class_set
from gmail_align.data.labels import (
    Labels,
    class_numbers,
    class_order,
    class_prompts,
    known_set,
    open_labels,
)
from gmail_align.errors import ConfigError, DataError


def test_classes_come_from_several_tables(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text('{"a": "cat", "b": "dog"}')
    other.write_text('{"b": "dog", "c": 7}')
    assert open_labels(one, other).classes == {"a": "cat", "b": "dog", "c": "7"}
    assert class_order(["dog", "10", "cat", "7", "dog"]) == ["7", "10", "cat", "dog"]
    for text in ('{"b": "cow"}', '{"b": ["dog"]}', '{"b": "x\\ud800"}', "[1]"):
        other.write_text(text)
        with pytest.raises(DataError, match=r"other\.json"):
            open_labels(one, other)
    one.write_text("{}")
    with pytest.raises(DataError, match=r"one\.json"):
        open_labels(one)


def test_rows_of_plain_files_are_their_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([3, 0]))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    numbers, names = open_labels(tmp_path / "y.npy"), open_labels(tmp_path / "names.txt")
    assert numbers.of(["0", "1"]) == ["3", "0"] and names.of(["0", "1"]) == ["cat", "dog"]
    with pytest.raises(DataError, match="2 labels"):
        names.of(["0"])
    with pytest.raises(DataError, match="1 of 2"):
        Labels({"0": "cat"}).of(["0", "1"])
    np.save(tmp_path / "y.npy", np.array([-1, 0]))
    with pytest.raises(DataError, match=r"y\.npy"):
        open_labels(tmp_path / "y.npy")


def test_labels_may_be_spelled_as_the_sets_files_are() -> None:
    classes = list(class_prompts(None, "oxford_pets"))
    said = Labels({"1": "Abyssinian", "2": "abyssinian", "3": "Basset Hound"})
    result = class_numbers(said, classes, known_set("oxford_pets", classes)).classes
    assert result["1"] == result["2"] == "Abyssinian" and result["3"] == "basset_hound"
    with pytest.raises(DataError, match="'abyssinian'"):
        class_numbers(said, classes, known_set("my_pets", classes))


def test_prompts_come_from_the_protocol_or_a_file(tmp_path: Path) -> None:
    assert class_prompts(None, "dtd") == class_set("dtd").prompts()
    with pytest.raises(ConfigError, match="--classes"):
        class_prompts(None, "urban_1k")
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"cat": ["a cat"], "dog": ["a dog"]}))
    assert class_prompts(path, "mine") == {"cat": ["a cat"], "dog": ["a dog"]}
    path.write_text('{"classes": {"red": {"name": "red", "prompts": ["a red ball"]}}}')
    assert class_prompts(path, "mine") == {"red": ["a red ball"]}
    for table in ({}, {"cat": ["a"], "dog": []}, {"cat": "a cat"}, {"cat": []}, []):
        path.write_text(json.dumps(table))
        with pytest.raises(DataError, match=r"classes\.json"):
            class_prompts(path, "mine")
