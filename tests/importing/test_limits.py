"""Hostile and odd inputs end in one sentence, in bounded time and memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.ImageFile import ImageFile

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.data.decode import whole_image
from gmail_align.data.images import ImageStore
from gmail_align.errors import DataError
from gmail_align.importing import parquet
from gmail_align.importing.admission import admit
from gmail_align.importing.archives import MAX_HEADER, open_members
from gmail_align.importing.formats.matlab import struct_rows
from gmail_align.importing.members import MAX_DEPTH, Folder
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from gmail_align.workflow.layouts import find_layout
from worlds.files import add_member

Make = Callable[..., bytes]
ALL = ImportOptions(limit_quarantine=1.0)


def left_out(artifact: Artifact) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in read_jsonl(artifact.path("quarantine.jsonl"))}


def header(name: bytes, size: int, kind: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2
    block[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + struct.pack(">Q", size)[-11:]
    block[136:148] = b"0" * 11 + b"\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_checking_a_large_photo_takes_an_eighth_of_each_side(
    make_picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sizes, load = make_picture(1, size=(640, 480)), list[tuple[int, int]](), ImageFile.load
    monkeypatch.setattr(ImageFile, "load", lambda self: (load(self), sizes.append(self.size))[0])
    record, kept = admit("a", data)
    assert (record.width, record.height) == (640, 480) and kept == data and sizes == [(80, 60)]
    with pytest.raises(DataError, match="truncated"):
        admit("a", data[: len(data) // 2])


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_long_headers_of_a_tar_are_not_read(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "t.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(header(b"long", MAX_HEADER + 1, kind) + b"a" * (MAX_HEADER + 1024))
    with pytest.raises(DataError, match=r"t\.tar\.gz .*impossible size"):
        open_members(path)


def test_a_negative_size_in_a_tar_is_damage_from_there_on(
    tmp_path: Path, make_picture: Make
) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("cat/a.jpg", "cat/b.jpg"):
            add_member(tar, name, make_picture(1))
    data = bytearray(path.read_bytes())
    at = data.find(b"cat/b.jpg")
    data[at + 124 : at + 136] = b"\x80\x7f" + b"\xff" * 10
    block = bytes(data[at : at + 512])
    data[at + 148 : at + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    path.write_bytes(data)
    made = import_data("folder", {"source": path}, tmp_path / "out", ALL)
    assert ImageStore(made["images"]).ids == ["a"]
    assert "is damaged from here on" in left_out(made["images"])["s"]


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_of_a_zip_is_left_out(
    tmp_path: Path, make_picture: Make, method: int
) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a.jpg", make_picture(1))
        file.writestr("b.jpg", make_picture(2))
    data = bytearray(path.read_bytes())
    data[50:80] = b"\xff" * 30
    path.write_bytes(data)
    made = import_data("folder", {"source": path}, tmp_path / "out", ALL)
    assert ImageStore(made["images"]).ids == ["b"]
    assert "is damaged" in left_out(made["images"])["a"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_what_follows_the_end_of_an_image_is_dropped(make_picture: Make, form: str) -> None:
    data = make_picture(1, form, (301, 203))
    assert whole_image(data) == data
    for tail in (b"\0" * 1000, b"\xff\xd9" * 9, data):
        assert whole_image(data + tail) == data
    cut = data[:-20]
    assert whole_image(cut)[: len(cut)] == cut


def test_a_progressive_jpeg_with_a_thumbnail_is_kept_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    buffer, small = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels[:8, :8]).save(small, "JPEG")
    tag = b"Exif\0\0" + small.getvalue()
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True, exif=tag, restart_marker_rows=1)
    assert whole_image(buffer.getvalue() + b"tail") == buffer.getvalue()


def test_many_large_files_are_not_held_at_once(tmp_path: Path, make_picture: Make) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for number in range(3):
            file.writestr(f"{number}.jpg", make_picture(number) + bytes(30 << 20))
    made = import_data("folder", {"source": path}, tmp_path / "out")
    store = ImageStore(made["images"])
    assert [store.read_bytes(name) for name in store.ids] == [make_picture(k) for k in range(3)]


def test_links_depth_and_pipes_of_a_folder(tmp_path: Path, make_picture: Make) -> None:
    root = tmp_path / "set"
    (root / "cat").mkdir(parents=True)
    (root / "cat/a.jpg").write_bytes(make_picture(1))
    (root / "loop").symlink_to(".")
    (root / "cat/up").symlink_to("..")
    (root / "same").symlink_to("cat")
    (root / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "cat/a.txt")
    deep = root
    for _ in range(MAX_DEPTH + 2):
        deep = deep / "d"
        deep.mkdir()
    listed = dict(Folder(root).listing())
    assert listed.pop("cat/a.jpg") == ""
    assert listed.pop("cat/a.txt") == "is not a regular file"
    assert listed.pop("same") == "is a link to a folder that is listed already"
    assert "cannot be read" in listed.pop("gone.jpg")
    ((name, fault),) = listed.items()
    assert name.startswith("d/d/d/")
    assert f"more than {MAX_DEPTH} folders deep" in fault
    with pytest.raises(DataError, match="a pipe of that name"):
        Folder(root).read("cat/a.txt")
    made = import_data("urban1k", {"source": root}, tmp_path / "out", ALL)
    assert made["images"].counts["images"] == 1


def test_an_annotation_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.token")
    with pytest.raises(DataError, match="regular file"):
        import_data("flickr30k", {"source": tmp_path / "t.token"}, tmp_path / "out")


@pytest.mark.parametrize("content", [b"hello\n", b"PAR1" + bytes(30) + b"PAR1", b""])
@pytest.mark.parametrize("importer", ["mmmu", "scienceqa", "parquet"])
def test_a_table_that_is_not_parquet(tmp_path: Path, importer: str, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet is damaged"):
        import_data(importer, {"source": path}, tmp_path / "out")


def test_a_parquet_column_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, make_picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_UNPACKED", 2**20)
    path, picture = tmp_path / "t.parquet", make_picture(1)
    short = [f"a picture {number}" for number in range(4)]
    for column, values in (("image", [picture + bytes(2**20)] * 4), ("caption", ["a" * 2**20] * 4)):
        table = {"image": [picture] * 4, "caption": short, column: values}
        pq.write_table(pa.table(table), path, compression="zstd", use_dictionary=False)
        with pytest.raises(DataError, match=rf"'{column}' of .*t\.parquet unpacks"):
            import_data("parquet", {"source": [path]}, tmp_path / column, ALL)


def test_a_value_that_many_rows_of_parquet_share_is_unpacked_for_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = np.random.default_rng(0).bytes(2**20)
    table = pa.table({"image": [value] * 64, "caption": ["a"] * 64})
    pq.write_table(table, tmp_path / "t.parquet", dictionary_pagesize_limit=2**30)
    del table
    monkeypatch.setattr(parquet, "_IN_MEMORY", 2**21)
    before, most = pa.total_allocated_bytes(), 0
    with parquet.parquet_file(tmp_path / "t.parquet") as file:
        for row in parquet.parquet_values(tmp_path / "t.parquet", file, ["image"]):
            assert row["image"] == value
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 2**23


def test_struct_arrays_of_matlab_files_are_read_as_scipy_reads_them() -> None:
    scipy_io = pytest.importorskip("scipy.io")
    kinds = [("bbox", "O"), ("class", "O"), ("fname", "O")]
    rows = np.array([(5, k + 1, f"{k:05d}.jpg") for k in range(50)], dtype=kinds)
    for packed in (False, True):
        buffer = io.BytesIO()
        values = {"other": np.eye(3), "annotations": rows}
        scipy_io.savemat(buffer, values, do_compression=packed)
        own = list(struct_rows(buffer.getvalue(), "annotations"))
        assert own == [{"bbox": 5.0, "class": k + 1.0, "fname": f"{k:05d}.jpg"} for k in range(50)]
        with pytest.raises(DataError, match="'elsewhere'"):
            list(struct_rows(buffer.getvalue(), "elsewhere"))


def test_damaged_matlab_files_never_hang() -> None:
    scipy_io = pytest.importorskip("scipy.io")
    kinds = [("class", "O"), ("fname", "O")]
    rows = np.array([(1, "1.jpg"), (2, "2.jpg")], dtype=kinds)
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, {"annotations": rows})
    data, rng = buffer.getvalue(), np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(data[: rng.integers(len(data)) if rng.random() < 0.2 else None])
        for _ in range(rng.integers(1, 6)):
            if damaged:
                damaged[rng.integers(len(damaged))] = rng.integers(256)
        with suppress(DataError):
            list(struct_rows(bytes(damaged), "annotations"))


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1}', "7"])
def test_lists_of_a_set_in_another_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/test.json").write_text(text)
    options = {"name": "food101", "source": tmp_path}
    with pytest.raises(DataError, match=r"meta/test\.json"):
        import_data("classification", options, tmp_path / "out")


def test_a_shard_that_is_no_tar_is_one_fault_of_many(tmp_path: Path, make_picture: Make) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        add_member(tar, "1.jpg", make_picture(1))
    (tmp_path / "00001.tar").write_bytes(b"<html>404</html>")
    (tmp_path / "00002.tar").write_bytes(b"")
    (tmp_path / "._00000.tar").write_bytes(b"\0\5\x16\7")
    made = import_data("webdataset", {"source": tmp_path}, tmp_path / "out", ALL)
    assert ImageStore(made["images"]).ids == ["1"]
    reasons = list(left_out(made["images"]).values())
    assert ["0000" in reason for reason in reasons] == [True, True]
    assert json.dumps(reasons).count("not a tar") == 2


def test_a_link_in_a_circle_costs_nothing_but_itself(tmp_path: Path, make_picture: Make) -> None:
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    (root / "cat/a.jpg").write_bytes(make_picture(1))
    os.symlink("b.jpg", root / "cat/b.jpg")
    made = import_data("folder", {"source": [root]}, tmp_path / "out", ALL)
    assert ImageStore(made["images"]).ids == ["a"]
    assert len(left_out(made["images"])) == 1


def test_a_pipe_named_as_a_shard_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(DataError, match=r"0\.tar is a pipe"):
        find_layout(tmp_path)
    with pytest.raises(DataError):
        import_data("webdataset", {"source": [tmp_path]}, tmp_path / "out", ALL)


def test_a_file_of_no_size_is_not_read(tmp_path: Path, make_picture: Make) -> None:
    """As /proc/kmsg, which is a regular file and never ends."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.jpg").write_bytes(make_picture(1))
    os.symlink("/proc/self/environ", tmp_path / "c/b.jpg")
    os.symlink("/proc/self/environ", tmp_path / "c/a.txt")
    made = import_data("imagefolder", {"source": tmp_path}, tmp_path / "out", ALL)
    assert left_out(made["images"]) == {"b": "the file is empty"}
    assert made["captions"].counts["captions"] == 0
    with pytest.raises(DataError):
        import_data("coco", {"source": Path("/proc/self/environ")}, tmp_path / "coco", ALL)
