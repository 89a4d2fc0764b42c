"""Names out of annotation files stay inside the image folder, whatever the format."""

from __future__ import annotations

import json
import tarfile
import unicodedata
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.data.images import ImageStore
from gmail_align.errors import DataError
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from worlds.files import add_member

Make = Callable[..., bytes]
ALL = ImportOptions(limit_quarantine=1.0)


def faults(artifact: Artifact) -> dict[str, str]:
    path = artifact.path("quarantine.jsonl")
    return {row["id"]: row["reason"] for row in read_jsonl(path)} if path.exists() else {}


def annotations(kind: str, home: Path, names: list[str]) -> dict[str, Any]:
    """Write a file of the kind that names images, and return the importer's options."""
    path = home / f"notes.{kind}"
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]
    rows: dict[str, Any] = {
        "json": {
            "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
            "annotations": [{"id": k, "image_id": k, "caption": "a"} for k in range(len(names))],
        },
        "karpathy": {
            "images": [
                {"filename": name, "split": "test", "sentences": [{"raw": "a", "sentid": k}]}
                for k, name in enumerate(names)
            ]
        },
        "sharegpt4v": [{"image": name, "conversations": turns} for name in names],
    }
    if kind in rows:
        path = home / f"{kind}.json"
        path.write_text(json.dumps(rows[kind]))
        return {"source": path}
    lines = {
        "token": "".join(f"{name}#0\ta\n" for name in names),
        "csv": "image,caption\n" + "".join(f"{name},a\n" for name in names),
        "jsonl": "".join(json.dumps({"image": name, "caption": "a"}) + "\n" for name in names),
        "mmmu": "".join(
            json.dumps({"id": f"test_A_{k}", "question": "?", "options": ["x"], "answer": "A"})[:-1]
            + f', "image_1": {json.dumps(name)}}}\n'
            for k, name in enumerate(names)
        ),
    }
    path = home / ("mmmu.jsonl" if kind == "mmmu" else path.name)
    path.write_text(lines[kind])
    return {"source": path}


IMPORTERS = {
    "json": "coco",
    "karpathy": "karpathy",
    "sharegpt4v": "sharegpt4v",
    "token": "flickr30k",
    "csv": "parquet",
    "jsonl": "parquet",
    "mmmu": "mmmu",
}


@pytest.mark.parametrize("place", ["images", "images.zip"])
@pytest.mark.parametrize("kind", IMPORTERS)
def test_names_that_leave_the_folder_are_left_out_with_a_reason(
    tmp_path: Path, make_picture: Make, kind: str, place: str
) -> None:
    for folder, name in (("secret", "x.jpg"), ("images", "y.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(make_picture(len(folder)))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.write(tmp_path / "images/y.jpg", "in/y.jpg")
    names = ["y.jpg", "../secret/x.jpg", str(tmp_path / "secret/x.jpg"), "../images/y.jpg"]
    options = annotations(kind, tmp_path, names) | {"images": [tmp_path / place]}
    made = import_data(IMPORTERS[kind], options, tmp_path / "out", ALL)
    store = ImageStore(made["images"])
    assert [store.read_bytes(name) for name in store.ids] == [make_picture(len("images"))]
    reasons = list(faults(made["images"]).values())
    assert len(reasons) == 3
    assert all("leaves the folder" in reason for reason in reasons)


@pytest.mark.parametrize("place", ["images", "images.zip"])
@pytest.mark.parametrize("kind", ["karpathy", "sharegpt4v", "jsonl", "mmmu"])
def test_a_name_of_half_a_character_is_left_out(
    tmp_path: Path, make_picture: Make, kind: str, place: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/y.jpg").write_bytes(make_picture(1))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.write(tmp_path / "images/y.jpg", "y.jpg")
    options = annotations(kind, tmp_path, ["y.jpg", "\ud800.jpg", "..\\y.jpg"])
    options |= {"images": [tmp_path / place]}
    made = import_data(IMPORTERS[kind], options, tmp_path / "out", ALL)
    assert len(ImageStore(made["images"])) == 1 and len(faults(made["images"])) == 2


def test_images_of_questions_stay_inside_too(tmp_path: Path, make_picture: Make) -> None:
    (tmp_path / "secret.jpg").write_bytes(make_picture(1))
    problem = {"question": "?", "choices": ["a", "b"], "answer": 0, "split": "test"}
    problem["image"] = "../../../secret.jpg"
    (tmp_path / "images").mkdir()
    (tmp_path / "problems.json").write_text(json.dumps({"0": problem}))
    options = {"source": tmp_path / "problems.json", "images": [tmp_path / "images"]}
    with pytest.raises(DataError, match="leaves the folder"):
        import_data("scienceqa", options, tmp_path / "out", ALL)


def test_names_in_another_unicode_form_and_with_other_slashes_are_found(
    tmp_path: Path, make_picture: Make
) -> None:
    apart = unicodedata.normalize("NFD", "sub/caf\u00e9.jpg")
    (tmp_path / "images/sub").mkdir(parents=True)
    (tmp_path / "images" / apart).write_bytes(make_picture(1))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr(f"images/{apart}", make_picture(1))
    options = annotations("json", tmp_path, ["sub\\caf\u00e9.jpg"])
    for place in ("images", "images.zip"):
        own = options | {"images": [tmp_path / place]}
        made = import_data("coco", own, tmp_path / f"out-{place}")
        assert ImageStore(made["images"]).read_bytes("0") == make_picture(1)


def test_a_name_that_several_archives_have_is_not_guessed(
    tmp_path: Path, make_picture: Make
) -> None:
    for number, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(make_picture(number))
        (tmp_path / folder / f"{folder}.jpg").write_bytes(make_picture(number))
    options = annotations("jsonl", tmp_path, ["a.jpg", "one.jpg", "two.jpg"])
    options["images"] = [tmp_path / "one", tmp_path / "two"]
    made = import_data("parquet", options, tmp_path / "out", ALL)
    assert ImageStore(made["images"]).ids == ["one", "two"]
    assert "is in one and two" in faults(made["images"])["a"]


@pytest.mark.parametrize("importer", ["folder", "parquet", "coco", "webdataset", "cc", "mmmu"])
@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_impossible_paths_are_missing_files(tmp_path: Path, importer: str, name: str) -> None:
    with pytest.raises(DataError):
        import_data(importer, {"source": tmp_path / name}, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("several", [False, True])
def test_a_member_that_comes_twice_is_the_image_of_no_name(
    tmp_path: Path, make_picture: Make, kind: str, several: bool
) -> None:
    path = tmp_path / f"images.{kind}"
    members = [("1.jpg", make_picture(0)), ("2.jpg", make_picture(2)), ("1.jpg", make_picture(1))]
    if kind == "zip":
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as file:
            for name, data in members:
                file.writestr(name, data)
    else:
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                add_member(tar, name, data)
    (tmp_path / "t.csv").write_text("image,caption\n1.jpg,one\n2.jpg,two\n")
    (tmp_path / "more").mkdir()
    options = {
        "source": tmp_path / "t.csv",
        "images": [path, *([tmp_path / "more"] if several else [])],
    }
    write = ImportOptions(limit_quarantine=1.0)
    made = import_data("csv", options, tmp_path / "out", write)
    assert ImageStore(made["images"]).ids == ["2"]
