"""Captions that lie beside images, in the shapes in which people keep them."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align.artifacts import read_jsonl
from gmail_align.data.captions import read_captions
from gmail_align.data.images import ImageStore
from gmail_align.errors import DataError
from gmail_align.importing.formats.image_folders import image_folder, urban1k
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from gmail_align.importing.source import Source
from gmail_align.importing.write import write_import

Make = Callable[..., bytes]
ALL = ImportOptions(limit_quarantine=1.0)
BOTH = {"a/cat.jpg": ["a cat"], "dog.png": ["a dog"]}


@pytest.fixture
def home(tmp_path: Path, make_picture: Make) -> Path:
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/cat.jpg").write_bytes(make_picture(1))
    (tmp_path / "set/dog.png").write_bytes(make_picture(2, "PNG"))
    return tmp_path / "set"


def captions(source: Source) -> dict[str, list[str]]:
    places = {one.image_id: one.place for one in source.staging.images()}
    texts: dict[str, list[str]] = {}
    for caption in source.staging.captions():
        texts.setdefault(places[caption.image_id], []).append(caption.text)
    return texts


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "captions.jsonl",
            [{"file_name": "a/cat.jpg", "text": "a cat"}, {"id": "dog", "text": "a dog"}],
        ),
        (
            "metadata.jsonl",
            [{"image": "cat.jpg", "caption": "a cat"}, {"path": "dog.png", "prompt": "a dog"}],
        ),
        ("captions.json", {"a/cat": "a cat", "dog.png": ["a dog"]}),
        ("metadata.csv", "file_name,text\na/cat.jpg,a cat\ndog.png,a dog\n"),
        (
            "prompts.json",
            [{"filename": "cat", "prompt": " a cat "}, {"filename": "dog", "captions": ["a dog"]}],
        ),
    ],
)
def test_a_table_names_images_by_path_or_file(home: Path, name: str, rows: Any) -> None:
    lines = "\n".join(map(json.dumps, rows)) if name.endswith("jsonl") else json.dumps(rows)
    (home / name).write_text(rows if isinstance(rows, str) else lines)
    assert captions(image_folder(home, "real")) == BOTH
    with zipfile.ZipFile(home.parent / "all.zip", "w") as archive:
        for path in sorted(home.rglob("*.*")):
            archive.write(path, path.relative_to(home))
    assert captions(image_folder(home.parent / "all.zip", "real")) == BOTH


def test_a_file_of_each_image(home: Path) -> None:
    (home / "a/cat.txt").write_text("\ufeffa cat\n two cats\n", encoding="utf-8")
    (home / "dog.json").write_text(json.dumps({"caption": "a dog", "width": 3}))
    expected = {"a/cat.jpg": ["a cat", "two cats"], "dog.png": ["a dog"]}
    assert captions(image_folder(home, "real")) == expected
    (home / "dog.json").write_text("[1, 2]")
    (home / "a/cat.txt").write_bytes(b"\xfc\x00")
    assert captions(image_folder(home, "real")) == {}
    (home / "dog.caption").write_text("a dog")
    assert captions(image_folder(home, "real")) == {"dog.png": ["a dog"]}


def test_a_short_name_that_several_images_have_is_not_guessed(
    home: Path, make_picture: Make
) -> None:
    (home / "b").mkdir()
    (home / "b/cat.jpg").write_bytes(make_picture(3))
    rows = [{"image": "cat.jpg", "text": "which?"}, {"image": "b/cat.jpg", "text": "this one"}]
    (home / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions(image_folder(home, "real")) == {"b/cat.jpg": ["this one"]}
    made = import_data(
        "urban1k", {"source": home}, home.parent / "out", ImportOptions(limit_quarantine=1.0)
    )
    reasons = [row["reason"] for row in read_jsonl(made["captions"].path("quarantine.jsonl"))]
    assert any("cat.jpg in metadata.jsonl" in reason for reason in reasons)


def test_a_damaged_table_is_refused(home: Path) -> None:
    (home / "captions.json").write_text("{")
    with pytest.raises(DataError, match=r"captions\.json"):
        image_folder(home, "real")


def test_a_folder_and_a_zip_of_it_give_the_same_images(home: Path) -> None:
    (home / "notes.md").write_text("no image")
    (home / ".hidden.png").write_bytes(b"hidden")
    with zipfile.ZipFile(home.parent / "set.zip", "w") as archive:
        for path in sorted(home.rglob("*.*"), reverse=True):
            archive.write(path, path.relative_to(home))
        archive.writestr("__MACOSX/a/cat.jpg", b"resource fork")
    made = {}
    for place in (home, home.parent / "set.zip"):
        source = image_folder(place, "generated")
        made[place.name] = write_import(source, home.parent / f"o-{place.name}", ImportOptions())
    one, two = (made[name]["images"] for name in ("set", "set.zip"))
    assert one.manifest["files"] == two.manifest["files"]
    store = ImageStore(one)
    assert store.ids == ["a--cat", "dog"]
    assert store.record("dog").source == "generated"


def test_one_name_in_two_folders_and_images_without_captions(
    tmp_path: Path, make_picture: Make
) -> None:
    for number, name in enumerate(("10_cat", "10_dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.jpg").write_bytes(make_picture(number))
        (tmp_path / "set" / name / "1.txt").write_text(f"a {name[3:]}.")
    (tmp_path / "set/10_dog/2.jpg").write_bytes(make_picture(2))
    made = import_data(
        "urban1k", {"source": tmp_path / "set"}, tmp_path / "o", ImportOptions(limit_quarantine=0.5)
    )
    store = ImageStore(made["images"])
    got = {one.text: store.read_bytes(one.image_id) for one in read_captions(made["captions"])}
    assert got == {"a cat.": make_picture(0), "a dog.": make_picture(1)}
    (row,) = read_jsonl(made["captions"].path("quarantine.jsonl"))
    assert row["id"] == "10_dog--2"


def test_every_table_of_a_folder_is_read(home: Path) -> None:
    (home / "metadata.csv").write_text("file_name,text\na/cat.jpg,a cat\n")
    line = {"file_name": "dog.png", "text": "a dog"}
    again = [{"file_name": "a/cat.jpg", "text": text} for text in ("a cat", "a lion")]
    (home / "Metadata.JSONL").write_text(json.dumps(line) + "\nbroken\n")
    (home / "prompts.json").write_text(json.dumps(again[:1]))
    source = urban1k([home])
    assert captions(source) == BOTH
    faults = [one.reason for one in source.staging.left_out("captions")]
    assert faults == ["row 1 in Metadata.JSONL is not JSON"]
    (home / "prompts.json").write_text(json.dumps(again))
    source = urban1k([home])
    assert captions(source) == BOTH
    reasons = [one.reason for one in source.staging.left_out("captions")]
    assert sum("another table" in one for one in reasons) == 2


@pytest.mark.parametrize("table", [True, False])
def test_captions_and_images_of_two_unicode_forms_meet(
    tmp_path: Path, make_picture: Make, table: bool
) -> None:
    composed, apart = (unicodedata.normalize(form, "sub/café") for form in ("NFC", "NFD"))
    (tmp_path / "s/sub").mkdir(parents=True)
    (tmp_path / "s" / f"{apart}.jpg").write_bytes(make_picture(1))
    notes = tmp_path / "s" / ("metadata.csv" if table else f"{composed}.txt")
    windows = composed.replace("/", "\\")
    notes.write_text(f"file_name,text\n{windows}.jpg,one\n" if table else "one")
    assert captions(urban1k([tmp_path / "s"])) == {f"{apart}.jpg": ["one"]}
    (tmp_path / "s" / f"{composed}.jpg").write_bytes(make_picture(2))
    notes.write_text(f"file_name,text\n{composed}.jpg,one\n" if table else "one")
    assert captions(urban1k([tmp_path / "s"])) == {f"{composed}.jpg": ["one"]}


@pytest.mark.parametrize("kind", ["tables", "root", "texts"])
def test_captions_of_another_split_are_not_faults(
    tmp_path: Path, make_picture: Make, kind: str
) -> None:
    lines = {split: f"{split}/1.jpg,{split}\n" for split in ("train", "Valid")}
    for split in lines:
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.jpg").write_bytes(make_picture(len(split)))
        if kind == "tables":
            (tmp_path / split / "metadata.csv").write_text(f"file_name,text\n1.jpg,{split}\n")
        elif kind == "texts":
            (tmp_path / split / "1.txt").write_text(split)
        else:
            (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(lines.values()))
    for wanted, split in (("train", "train"), ("val", "Valid")):
        source = urban1k([tmp_path], split=wanted)
        assert captions(source) == {f"{split}/1.jpg": [split]}
        assert not source.staging.left_out_count("captions")
        assert not source.staging.passed_over


@pytest.fixture
def three(tmp_path: Path, make_picture: Make) -> Path:
    (tmp_path / "three").mkdir()
    for k in range(3):
        (tmp_path / f"three/{k}.jpg").write_bytes(make_picture(k))
    return tmp_path / "three"


def test_a_row_without_a_file_name_describes_no_image(three: Path) -> None:
    rows = [{"file_name": None, "id": 1, "text": "another"}, {"file_name": "0.jpg", "text": "own"}]
    rows += [{"file_name": "", "id": 2, "text": "a third"}]
    (three / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    made = import_data("imagefolder", {"source": three}, three.parent / "out", ALL)
    captions = read_captions(made["captions"])
    assert [(one.image_id, one.text) for one in captions] == [("0", "own")]


@pytest.mark.parametrize("name", ["1", 1, 1.0, "1.jpg"])
def test_a_number_names_an_image(three: Path, name: Any) -> None:
    (three / "metadata.jsonl").write_text(json.dumps({"image_id": name, "text": "own"}))
    made = import_data("imagefolder", {"source": three}, three.parent / "out", ALL)
    assert [one.image_id for one in read_captions(made["captions"])] == ["1"]


def test_a_short_name_is_compared_with_the_images_of_every_split(
    tmp_path: Path, make_picture: Make
) -> None:
    home = tmp_path / "set"
    for split in ("train", "test"):
        (home / split).mkdir(parents=True)
        (home / split / "0.jpg").write_bytes(make_picture(len(split)))
    (home / "train/1.jpg").write_bytes(make_picture(1))
    (home / "metadata.csv").write_text("file_name,text\n0.jpg,whose\n1.jpg,own\n")
    made = import_data("imagefolder", {"source": home, "split": "train"}, tmp_path / "out", ALL)
    assert [(one.image_id, one.text) for one in read_captions(made["captions"])] == [("1", "own")]


@pytest.mark.parametrize("other", ["a.png", "images/a.jpg"])
def test_a_file_of_captions_that_two_images_share_is_left_out(
    tmp_path: Path, make_picture: Make, other: str
) -> None:
    home = tmp_path / "set"
    for name in ("a.jpg", "b.jpg", other):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(make_picture(1, "PNG" if name.endswith("png") else "JPEG"))
    for stem in ("a", "b"):
        (home / f"{stem}.txt").write_text(stem)
    made = import_data("imagefolder", {"source": home}, tmp_path / "out", ALL)
    assert made["images"].counts["images"] == 3
    assert [one.text for one in read_captions(made["captions"])] == ["b"]
    assert made["captions"].counts["quarantined"] == 2


@pytest.mark.parametrize(
    ("table", "cause"),
    [
        (b"image,caption\na/cat.jpg,a caf\xe9\ndog.png,a dog\n", "row 0 in captions.csv is not"),
        (b"image,caption\na/cat.jpg,a cat, asleep\ndog.png,a dog\n", "has 3 fields"),
        (b"a/cat.jpg,a cat\ndog.png,a dog\n", "does not have a column of file names"),
        (b"image,caption\ncats.jpg,a cat\ndog.png,a dog\n", "cats.jpg in captions.csv has no"),
    ],
)
def test_the_cause_is_told_before_its_consequence(home: Path, table: bytes, cause: str) -> None:
    (home / "captions.csv").write_bytes(table)
    source = urban1k([home])
    first, *others = (one.reason for one in source.staging.left_out("captions"))
    assert cause in first
    assert any("does not have a caption beside it" in other for other in others)
