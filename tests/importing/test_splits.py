"""Names of folders and files that stand for a split, and names that only look like it."""

from __future__ import annotations

import pytest

from gmail_align.importing.splits import split_of, split_of_file


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train2017", "train"),
        ("Training Set", "train"),
        ("imgs_train", "train"),
        ("01_train", "train"),
        ("trainval2012", "train"),
        ("train.v2", "train"),
        ("data-test", "test"),
        ("TST", "test"),
        ("validation_images_v1", "val"),
        ("bullet_train", None),
        ("test_tube", None),
        ("trainer", None),
        ("value", None),
        ("data", None),
    ],
)
def test_folders_are_named_by_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_files_are_named_by_splits() -> None:
    assert split_of_file("my photos test.csv") == split_of_file("02_test/a.csv") == "test"
    assert split_of_file("contest.csv") is None
