from __future__ import annotations

import io
import tarfile
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
    assert members.find("other/c.txt") == (None if kind == "folder" else "y/z/c.txt")
    assert members.find("other/a.jpg") is None  # two have that name
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
    with pytest.raises(DataError, match="is in f and f-1"):
        members.find("x/a.jpg")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no zip"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        open_members(tmp_path / "f")
    with pytest.raises(DataError, match="there is no folder, zip or tar at"):
        open_members(tmp_path / "g")
