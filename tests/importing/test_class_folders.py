from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from gmail_align.artifacts import load
from gmail_align.data.images import ImageStore
from gmail_align.errors import ArtifactError, DataError
from gmail_align.importing.class_folders import (
    class_prompt,
    image_ids,
    import_images,
    labels_of,
    pairs_by_name,
    source_paths,
)


def picture(colour: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 20, 30)).save(file, kind)
    return file.getvalue()


def folder(home: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return home


def test_a_folder_becomes_images_with_their_paths(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", ["a/x 1.png", "b/x 1.png", "b/.hidden.png", "c.PNG"])
    (source / "notes.txt").write_text("no image")
    images = import_images(source, tmp_path / "out", "generated")
    paths = source_paths(images)
    assert paths == {"a-x-1": "a/x 1.png", "b-x-1": "b/x 1.png", "c": "c.PNG"}
    store = ImageStore(images)
    assert store.ids == list(paths)
    assert store.record("c").source == "generated"
    assert store.read_bytes("a-x-1") == (source / "a" / "x 1.png").read_bytes()
    again = import_images(source, tmp_path / "out", "generated")
    assert again.fingerprint == images.fingerprint
    folder(source, ["new.png"])
    with pytest.raises(ArtifactError, match="belongs to another run"):
        import_images(source, tmp_path / "out", "generated")


def test_a_zip_holds_the_same_images(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", ["a/1.png", "b/2.png"])
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted(source.rglob("*.png")):
            archive.write(path, path.relative_to(source))
        archive.writestr("__MACOSX/a/1.png", b"resource fork")
    one = import_images(source, tmp_path / "one", "real")
    two = import_images(tmp_path / "in.zip", tmp_path / "two", "real")
    assert source_paths(one) == source_paths(two)
    assert one.manifest["files"] == two.manifest["files"]


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image file"):
        import_images(tmp_path / "empty", tmp_path / "out", "real")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ArtifactError, match="no folder of images, zip of images or artifact"):
        import_images(tmp_path / "text.zip", tmp_path / "out", "real")
    broken = folder(tmp_path / "broken", ["a.png", "b.png"])
    (broken / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match="1 of 2 images cannot be used"):
        import_images(broken, tmp_path / "bad", "real")


def test_a_few_bad_images_are_left_out_by_name(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", [f"{number:03}.png" for number in range(100)])
    (source / "007.png").write_bytes(b"")
    images = import_images(source, tmp_path / "out", "real")
    assert images.counts == {"images": 99, "quarantined": 1, "shards": 1}
    assert "007.png" in images.path("quarantine.jsonl").read_text()
    assert load(tmp_path / "out").kind == "images"


def test_ids_are_safe_and_unique() -> None:
    names = image_ids(["a/b.png", "a-b.png", "ä/ö.png", "x" * 300 + ".png", "_1.jpg"])
    assert names[:2] == ["a-b", "a-b-2"]
    assert len(set(names)) == 5
    assert all(0 < len(name) <= 90 and name[0].isalnum() for name in names)


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


def test_equal_names_are_pairs() -> None:
    real, made = {"r1": "a/1.jpg", "r2": "a/2.jpg"}, {"g1": "a/1.png", "g3": "a/3.png"}
    assert pairs_by_name(real, made) == [("r1", "g1")]
    with pytest.raises(DataError, match="no generated image has the name"):
        pairs_by_name(real, {"g": "b/1.png"})
    with pytest.raises(DataError, match="two images are named a/1"):
        pairs_by_name(real, {"g": "a/1.png", "h": "a/1.jpg"})


def test_class_folders_are_read_as_words() -> None:
    assert class_prompt("0_fire_truck") == "a photo of a fire truck."
    assert class_prompt("42") == "a photo of a 42."
