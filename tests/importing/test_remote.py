"""Imports behind URLs give what imports from disk give: folders, zips, tars, json, Parquet."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmail_align import remote
from gmail_align.artifacts import Artifact
from gmail_align.errors import RemoteError
from gmail_align.importing.run import import_data
from gmail_align.tabletop.world import write_coco

HOME = "memory://imports"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw six scenes; write them as a folder, a zip, a tar, shards and a table, and upload all."""
    folder = tmp_path_factory.mktemp("world")
    write_coco(folder, "train", 6)
    images = sorted((folder / "images").iterdir())
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for path in images:
            archive.write(path, f"images/{path.name}")
    for name in ("images.tar", "images.tar.gz"):
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(folder / "images", "images")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for path in images:
            tar.add(path, path.name)
            (folder / "text.txt").write_text(f"about {path.stem}")
            tar.add(folder / "text.txt", f"{path.stem}.txt")
    rows = [{"image": {"bytes": p.read_bytes(), "path": p.name}, "caption": p.stem} for p in images]
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/imports/{path.relative_to(folder)}", path.read_bytes())
    return folder


def same(first: dict[str, Artifact], second: dict[str, Artifact]) -> bool:
    return {k: one.fingerprint for k, one in first.items()} == {
        k: one.fingerprint for k, one in second.items()
    }


@pytest.mark.parametrize(
    ("importer", "options"),
    [
        ("coco", {"source": "captions_train.json", "images": ["images"]}),
        ("coco", {"source": "captions_train.json", "images": ["images.zip"]}),
        ("coco", {"source": "captions_train.json", "images": ["images.tar"]}),
        ("coco", {"source": "captions_train.json", "images": ["images.tar.gz"]}),
        ("webdataset", {"source": ["shard.tar"]}),
        ("parquet", {"source": ["table.parquet"]}),
    ],
)
def test_what_lies_behind_a_url_is_imported_alike(
    world: Path, tmp_path: Path, importer: str, options: dict[str, str | list[str]]
) -> None:
    def at(home: str) -> dict[str, str | list[str]]:
        return {
            key: f"{home}/{value}" if isinstance(value, str) else [f"{home}/{v}" for v in value]
            for key, value in options.items()
        }

    here = import_data(importer, at(str(world)), tmp_path / "here")
    there = import_data(importer, at(HOME), tmp_path / "there")
    assert same(here, there)
    assert here["images"].counts["images"] == 6
    stamp = there["images"].path("manifest.json").stat().st_mtime_ns
    again = import_data(importer, at(HOME), tmp_path / "there")  # nothing is read again
    assert again["images"].path("manifest.json").stat().st_mtime_ns == stamp


def test_a_changed_file_behind_a_url_is_seen(world: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/imports/changing.csv", b"image,caption\na.jpg,one\n")
    options = {"source": [f"{HOME}/changing.csv"], "image_column": "image"}
    import_data("parquet", options, tmp_path / "first")
    before = (tmp_path / "first" / "import.json").read_text()
    files.pipe_file("/imports/changing.csv", b"image,caption\na.jpg,another\n")
    import_data("parquet", options, tmp_path / "second")
    assert (tmp_path / "second" / "import.json").read_text() != before


def test_a_zip_is_read_by_ranges(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member of a zip costs its own bytes and the table of contents, not the archive."""
    from gmail_align.importing.archives import Zip

    files = fsspec.filesystem("memory")
    name = "/imports/large.zip"
    with files.open(name, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for number in range(50):
            archive.writestr(f"{number}.jpg", bytes(200_000))
    read = [0]
    real = remote.io.BufferedReader

    class Counting(real):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            read[0] += len(data)
            return data

    monkeypatch.setattr(remote.io, "BufferedReader", Counting)
    members = Zip(Path("memory://imports/large.zip"))
    assert members.read("30.jpg") == bytes(200_000)
    assert read[0] < 300_000 < files.size(name)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for options in (
        {"source": "memory://imports/none.json"},
        {"source": "memory://imports/captions_train.json", "images": ["memory://imports/none"]},
    ):
        with pytest.raises(RemoteError, match="memory://imports/none"):
            import_data("coco", options, tmp_path / "out")


@pytest.mark.parametrize("images", ["images", "images.zip", "images.tar"])
def test_a_connection_that_breaks_ends_the_import_and_leaves_nothing_out(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: str
) -> None:
    """What is not reached is not damaged: no image may be missing because the network was."""
    options = {"source": f"{HOME}/captions_train.json", "images": [f"{HOME}/{images}"]}
    files = type(fsspec.filesystem("memory"))
    real, reads = remote._File.readinto, [0]

    def broken(self: object, *_: object, **__: object) -> bytes:
        with remote.explained(HOME):
            raise ConnectionResetError("cut")

    def cut(self: remote._File, buffer: bytearray) -> int:
        reads[0] += "images" in self._url
        return broken(self) if reads[0] > 6 else real(self, buffer)

    monkeypatch.setattr(remote._File, "readinto", cut)
    monkeypatch.setattr(files, "cat_file", broken)
    with pytest.raises(RemoteError, match="network"):
        import_data("coco", options, tmp_path / "out")
    monkeypatch.undo()
    assert import_data("coco", options, tmp_path / "out")["images"].counts["images"] == 6
