"""Captions beside images, in the shapes in which people keep them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from gmail_align.errors import DataError
from gmail_align.importing.captions_beside_images import captions_beside

PATHS = ["a/cat.jpg", "dog.png"]
BOTH = {"a/cat.jpg": "a cat", "dog.png": "a dog"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "captions.jsonl",
            [{"file_name": "a/cat.jpg", "text": "a cat"}, {"id": "dog", "text": "a dog"}],
        ),
        (
            "metadata.jsonl",
            [{"image": "cat.jpg", "caption": "a cat"}, {"path": "dog.png", "prompt": "a dog"}],
        ),
        ("captions.json", {"a/cat": "a cat", "dog.png": ["a dog", "an animal"]}),
        (
            "prompts.json",
            [{"filename": "cat", "prompt": " a cat "}, {"filename": "dog", "captions": ["a dog"]}],
        ),
    ],
)
def test_a_table_names_images_by_path_or_file(name: str, said: object, tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, said)) if isinstance(said, list) else ""
    (tmp_path / name).write_text(lines if name.endswith("l") else json.dumps(said))
    assert captions_beside(tmp_path, PATHS) == BOTH
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / name, name)
    assert captions_beside(tmp_path / "all.zip", PATHS) == BOTH


def test_a_file_of_each_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cat.txt").write_text("\ufeffa\ncat \n", encoding="utf-8")
    (tmp_path / "dog.json").write_text(json.dumps({"caption": "a dog", "width": 3}))
    assert captions_beside(tmp_path, [*PATHS, "bird.png"]) == BOTH
    (tmp_path / "dog.json").write_text("[1, 2]")
    (tmp_path / "a" / "cat.txt").write_bytes(b"\xff\xfe\x00")
    assert captions_beside(tmp_path, PATHS) == {}
    (tmp_path / "a" / "cat.txt").write_text("x" * 30_000)
    assert captions_beside(tmp_path, PATHS) == {}


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text("{")
    with pytest.raises(DataError, match=r"captions.json is no JSON of captions"):
        captions_beside(tmp_path, PATHS)
    (tmp_path / "captions.json").write_text('"words"')
    assert captions_beside(tmp_path, PATHS) == {}
