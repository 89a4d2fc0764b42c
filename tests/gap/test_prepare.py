"""What subfolders and names of two folders say about their images."""

from __future__ import annotations

import pytest

from gmail_align.errors import DataError
from gmail_align.gap.prepare import class_prompt, labels_of, pairs_by_name


def test_subfolders_are_classes_and_above_them_generators() -> None:
    real = {"1": "cat/1.png", "2": "dog/1.png"}
    made = {"a": "sd/cat/1.png", "b": "flux/dog/1.png"}
    assert labels_of(real, made) == (
        {"1": "cat", "2": "dog"},
        {"a": "cat", "b": "dog"},
        {"a": "sd", "b": "flux"},
    )
    flat = {"1": "1.png", "2": "2.png"}
    assert labels_of(flat, made) == ({}, {}, {"a": "sd/cat", "b": "flux/dog"})
    assert labels_of(flat, flat) == ({}, {}, {})
    assert labels_of(real, real) == ({"1": "cat", "2": "dog"}, {"1": "cat", "2": "dog"}, {})


def test_a_split_is_neither_a_class_nor_a_generator() -> None:
    real = {"1": "train/cat/1.png", "2": "train/dog/1.png"}
    made = {"a": "cat/val/1.png", "b": "dog/val/1.png"}
    assert labels_of(real, made) == ({"1": "cat", "2": "dog"}, {"a": "cat", "b": "dog"}, {})


def test_equal_names_are_pairs() -> None:
    real, made = {"r1": "a/1.jpg", "r2": "b/2.jpg"}, {"g1": "a/1.png", "g3": "b/3.png"}
    assert pairs_by_name(real, made) == [("r1", "g1")]
    with pytest.raises(DataError, match="no generated image has the name"):
        pairs_by_name(real, {"g": "c/1.png", "h": "d/1.png"})
    with pytest.raises(DataError, match="two images are named a/1"):
        pairs_by_name(real, {"g": "a/1.png", "h": "a/1.jpg", "i": "b/1.jpg"})


def test_class_folders_are_read_as_words() -> None:
    assert class_prompt("0_fire_truck") == "a photo of a fire truck."
    assert class_prompt("42") == "a photo of a 42."
