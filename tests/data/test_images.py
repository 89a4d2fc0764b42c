from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmail_align.artifacts import Artifact, begin
from gmail_align.data import images
from gmail_align.data.decode import decode_rgb
from gmail_align.data.images import (
    ImageRecord,
    ImageStore,
    Quarantined,
    check_quarantine,
    finish_images,
    read_shard,
    shard_name,
    write_shard,
)
from gmail_align.errors import ArtifactError, DataError
from gmail_align.importing.admission import admit

Make = Callable[..., bytes]


def build(folder: Path, make_picture: Make) -> Artifact:
    """Write two shards: three real images in three formats, and a generated one."""
    draft = begin(folder, "images", {})
    real = [
        admit(name, make_picture(n, form))
        for n, (name, form) in enumerate([("b", "PNG"), ("a", "JPEG"), ("c", "WEBP")])
    ]
    write_shard(draft.path(shard_name(0)), real, [Quarantined("x", "truncated")])
    meta, data = admit("7-0", make_picture(9))
    made = replace(
        meta, source="generated", generator="sd", revision="f00", seed=2**62, prompt="a „cat“"
    )
    write_shard(draft.path(shard_name(1)), [(made, data)])
    return finish_images(draft, limit_quarantine=0.5)


def test_every_image_comes_back_as_it_was(tmp_path: Path, make_picture: Make) -> None:
    store = ImageStore(build(tmp_path / "i", make_picture))
    assert store.ids == ["b", "a", "c", "7-0"]
    assert len(store) == 4
    assert "c" in store
    assert "x" not in store
    assert store.read_bytes("a") == make_picture(1, "JPEG")
    assert store.read_bytes("c") == make_picture(2, "WEBP")
    expected = np.asarray(decode_rgb(make_picture(0, "PNG")))
    assert np.array_equal(np.asarray(store.read("b")), expected)


@pytest.mark.parametrize(("limit", "together"), [(0, 1), (2**25, 2)])
def test_threads_hold_one_large_image_at_a_time(
    limit: int, together: int, tmp_path: Path, make_picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(build(tmp_path / "i", make_picture))
    monkeypatch.setattr(images, "_LARGE", limit)
    meeting = threading.Barrier(2)
    held: list[int] = []

    def hold(image: Image.Image) -> tuple[int, int]:
        held.append(1)
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.5)  # two of them meet here, unless one waits outside
        most.append(len(held))
        held.pop()
        return image.size

    most: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        sizes = list(pool.map(lambda name: store.reduce(name, hold), ["a", "b"]))
    assert sizes == [store.read(name).size for name in ("a", "b")]
    assert max(most) == together


def test_the_index_records_where_an_image_comes_from(tmp_path: Path, make_picture: Make) -> None:
    store = ImageStore(build(tmp_path / "i", make_picture))
    record = store.record("7-0")
    assert (record.shard, record.source, record.generator) == (1, "generated", "sd")
    assert (record.seed, record.prompt) == (2**62, "a „cat“")
    assert (record.width, record.height) == (24, 16)
    real = store.record("a")
    assert (real.source, real.generator, real.seed) == ("real", "", None)


def test_shards_are_tar_files_in_webdataset_layout(tmp_path: Path, make_picture: Make) -> None:
    artifact = build(tmp_path / "i", make_picture)
    store = ImageStore(artifact)
    with tarfile.open(artifact.path(shard_name(0))) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            *("b.png", "b.json", "a.jpg", "a.json", "c.webp", "c.json")
        ]
        assert {member.mtime for member in members} == {0}
        assert [member.offset_data for member in members[::2]] == [
            store.record(name).offset for name in "bac"
        ]
        handle = tar.extractfile("a.json")
        assert handle is not None
        assert json.load(handle)["source"] == "real"


def test_the_same_images_give_the_same_bytes(tmp_path: Path, make_picture: Make) -> None:
    one, two = (build(tmp_path / name, make_picture) for name in "ab")
    assert one.manifest["files"] == two.manifest["files"]
    assert one.fingerprint == two.fingerprint
    assert one.counts == {"images": 4, "quarantined": 1, "shards": 2}
    assert one.path("quarantine.jsonl").read_text() == '{"id": "x", "reason": "truncated"}\n'


def test_a_shard_without_its_whole_tar_is_not_done(tmp_path: Path, make_picture: Make) -> None:
    path = tmp_path / shard_name(3)
    assert read_shard(path) is None
    records = write_shard(path, [admit("a", make_picture(1))])
    assert read_shard(path) == (records, [])
    assert records[0].shard == 3
    whole = path.read_bytes()
    path.write_bytes(whole[:600])
    assert read_shard(path) is None
    path.write_bytes(whole)
    path.with_suffix(".jsonl").write_text('{"id": ')
    assert read_shard(path) is None


def test_other_formats_are_stored_as_png(make_picture: Make) -> None:
    _, data = admit("a", make_picture(1, "BMP"))
    assert data.startswith(b"\x89PNG")
    expected = np.asarray(decode_rgb(make_picture(1, "BMP")))
    assert np.array_equal(np.asarray(decode_rgb(data)), expected)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "a.b", ""])
def test_ids_that_leave_the_folder_are_refused(
    tmp_path: Path, make_picture: Make, name: str
) -> None:
    with pytest.raises(DataError, match="an image has the id"):
        write_shard(tmp_path / shard_name(0), [admit(name, make_picture(1))])
    assert not list(tmp_path.rglob("*.tar"))


def test_an_id_that_comes_twice_is_refused(tmp_path: Path, make_picture: Make) -> None:
    sample = admit("a", make_picture(1))
    with pytest.raises(DataError, match="a comes twice in 00000.tar"):
        write_shard(tmp_path / shard_name(0), [sample, sample])
    draft = begin(tmp_path / "i", "images", {})
    for number in (0, 1):
        write_shard(draft.path(shard_name(number)), [sample])
    with pytest.raises(DataError, match="image id a comes twice"):
        finish_images(draft)


def test_bytes_that_are_no_image_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither JPEG, PNG nor WebP"):
        write_shard(tmp_path / shard_name(0), [(ImageRecord(id="a", width=1, height=1), b"GIF8")])


def test_too_many_broken_images_stop_the_run(tmp_path: Path, make_picture: Make) -> None:
    bad = [Quarantined("x", "truncated"), Quarantined("y", "empty")]
    check_quarantine(bad, 200, 0.01)
    with pytest.raises(
        DataError, match=r"2 of 199 images cannot be used, more than 1.00% \(the fi"
    ):
        check_quarantine(bad, 199, 0.01)
    draft = begin(tmp_path / "i", "images", {})
    write_shard(draft.path(shard_name(0)), [admit("a", make_picture(1))], bad)
    with pytest.raises(DataError, match="2 of 3 images"):
        finish_images(draft)


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would not hold an image"):
        finish_images(begin(tmp_path / "i", "images", {}))


def test_damage_and_unknown_ids_are_named(tmp_path: Path, make_picture: Make) -> None:
    artifact = build(tmp_path / "i", make_picture)
    store = ImageStore(artifact)
    with pytest.raises(DataError, match="image 'nobody'"):
        store.read("nobody")
    path = artifact.path(shard_name(1))
    whole = bytearray(path.read_bytes())
    whole[store.record("7-0").offset + 50] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ArtifactError, match="image 7-0 in .* is damaged"):
        store.read("7-0")
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{path} is missing"):
        store.read("7-0")
    index = artifact.path("index.parquet")
    page = bytearray(index.read_bytes())
    first = pq.ParquetFile(index).metadata.row_group(0).column(5)  # width: read with a record alone
    start = first.dictionary_page_offset or first.data_page_offset
    page[start : start + first.total_compressed_size] = bytes(first.total_compressed_size)
    index.write_bytes(page)
    with pytest.raises(ArtifactError, match=rf"{index} is damaged"):
        ImageStore(artifact).record("7-0")
    index.write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="damaged"):
        ImageStore(artifact)
    with pytest.raises(ArtifactError, match="holds pairs"):
        ImageStore(begin(tmp_path / "p", "pairs", {}).finish({}))
