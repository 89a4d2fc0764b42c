from __future__ import annotations

import io
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest

from gmail_align.errors import DataError
from gmail_align.importing.archives import open_members, open_several
from gmail_align.importing.members import Members

FILES = {"x/b.jpg": b"bb", "x/a.jpg": b"a", "y/z/c.txt": b"ccc", "x/.hidden": b"h", "y/a.jpg": b"2"}
SEEN = {name: data for name, data in FILES.items() if "hidden" not in name}


def packed(kind: str, home: Path) -> Path:
    if kind == "folder":
        for name, data in FILES.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)
        return home
    path = home / f"f.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in FILES.items():
                file.writestr(name, data)
        return path
    with tarfile.open(path, {"tar": "w:", "tgz": "w:gz", "txz": "w:xz"}[kind]) as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tgz", "txz"])
def test_folders_zips_and_tars_are_read_alike(tmp_path: Path, kind: str) -> None:
    members = open_members(packed(kind, tmp_path))
    assert isinstance(members, Members)
    listed = list(members.listing())
    assert sorted(listed) == sorted((name, "") for name in SEEN)
    order = [name for name, _ in listed]
    assert order == (sorted(SEEN) if kind == "folder" else list(SEEN))
    assert {name: members.read(name) for name in reversed(order)} == SEEN
    assert members.serial == (kind in ("tgz", "txz"))
    assert members.find("y/z/c.txt") == "y/z/c.txt"
    for name in ("c.txt", "z/c.txt", "set\\y\\z\\c.txt"):  # below a folder, or without one
        assert members.find(name) == (None if kind == "folder" else "y/z/c.txt")
    assert members.find("other/c.txt") is None  # no folder stands for another
    if kind != "folder":
        with pytest.raises(DataError, match="a.jpg may be"):
            members.find("a.jpg")
    assert members.stamp("x/b.jpg")[0] == len(SEEN["x/b.jpg"])
    with pytest.raises(DataError, match="nowhere"):
        members.stamp("nowhere")
    with pytest.raises(DataError):
        members.read("nowhere")


def test_several_places_are_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    members = open_several([packed("tar", tmp_path / "a"), packed("zip", tmp_path / "b")])
    names = [name for name, fault in members.listing() if not fault]
    assert names == [*SEEN, *(f"f-1/{name}" for name in SEEN)]
    assert members.read("x/a.jpg") == members.read("f-1/x/a.jpg") == b"a"
    assert members.find("f-1/y/z/c.txt") == "f-1/y/z/c.txt"
    with pytest.raises(DataError, match="nowhere"):
        members.read("nowhere")
    with pytest.raises(DataError, match="is in f-0 and f-1"):
        members.find("x/a.jpg")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no zip"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        open_members(tmp_path / "f")
    with pytest.raises(DataError, match="there is no folder, zip or tar at"):
        open_members(tmp_path / "g")


def test_each_of_two_names_that_differ_in_their_unicode_form_is_found(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "caf\u00e9.jpg") for form in ("NFC", "NFD")]
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as file:
        for name in names:
            file.writestr(name, name)
    members = open_members(tmp_path / "f.zip")
    assert [members.find(name) for name in names] == names
    assert [members.read(name).decode() for name in names] == names


def test_a_name_that_several_archives_have_below_a_folder_is_not_guessed(tmp_path: Path) -> None:
    for archive, folders in (("f", "x"), ("g", "y"), ("h", "yz")):
        with zipfile.ZipFile(tmp_path / f"{archive}.zip", "w") as file:
            for folder in folders:
                file.writestr(f"{folder}/a.jpg", archive)
            file.writestr(f"x/{archive}.jpg", archive)
    pair = open_several([tmp_path / "f.zip", tmp_path / "g.zip"])
    with pytest.raises(DataError, match="is in f and g"):
        pair.find("a.jpg")
    assert [pair.find(name) for name in ("f.jpg", "g.jpg")] == ["x/f.jpg", "x/g.jpg"]
    with pytest.raises(DataError, match="may be"):
        open_several([tmp_path / "f.zip", tmp_path / "h.zip"]).find("a.jpg")


def test_a_zip_with_backslashes_has_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as file:
        for name in ("cat\\1.jpg", "dog\\1.jpg", "..\\2.jpg"):
            file.writestr(name, name)
    members = open_members(tmp_path / "f.zip")
    assert [(name, bool(fault)) for name, fault in members.listing()] == [
        ("cat/1.jpg", False),
        ("dog/1.jpg", False),
        ("../2.jpg", True),
    ]
    assert members.read("dog/1.jpg") == b"dog\\1.jpg"
