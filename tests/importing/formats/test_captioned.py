from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align.artifacts import Artifact
from gmail_align.data.captions import read_captions
from gmail_align.data.images import ImageStore
from gmail_align.errors import ArtifactError, DataError
from gmail_align.importing.formats.captioned import cc, flickr30k, karpathy, sharegpt4v
from gmail_align.importing.formats.image_folders import urban1k
from gmail_align.importing.formats.tables import parquet
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.source import Source
from gmail_align.importing.write import write_import

Make = Callable[..., bytes]


def imported(source: Source, out: Path, **options: Any) -> dict[str, Artifact]:
    return write_import(source, out, ImportOptions(**options))


def rows(made: dict[str, Artifact]) -> list[tuple[str, str, str]]:
    return [(one.caption_id, one.text, one.image_id) for one in read_captions(made["captions"])]


def write_karpathy(path: Path, *, cocoid: bool) -> None:
    images = []
    for number, split in enumerate(("train", "restval", "val", "test", "test")):
        name = f"COCO_val2014_{number:012d}.jpg" if cocoid else f"{100 + number}_ab.jpg"
        entry: dict[str, Any] = {
            "filename": name,
            "split": split,
            "imgid": number,
            "sentences": [
                {"raw": f"text {k} of {number}", "sentid": number * 2 + k} for k in (0, 1)
            ],
        }
        images.append(entry | ({"filepath": "val2014", "cocoid": number} if cocoid else {}))
    path.write_text(json.dumps({"dataset": "x", "images": images}))


def test_karpathy_with_coco_ids_in_two_zips(tmp_path: Path, make_picture: Make) -> None:
    write_karpathy(tmp_path / "dataset_coco.json", cocoid=True)
    for part, numbers in (("a", (0, 1, 2)), ("b", (3, 4))):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as file:
            for number in numbers:
                name = f"val2014/COCO_val2014_{number:012d}.jpg"
                file.writestr(name, make_picture(number))
    zips = [tmp_path / "a.zip", tmp_path / "b.zip"]
    source = karpathy(tmp_path / "dataset_coco.json", zips, split=["train", "restval"])
    made = imported(source, tmp_path / "out")
    assert ImageStore(made["images"]).ids == ["0", "1"]
    assert rows(made) == [
        *(("0", "text 0 of 0", "0"), ("1", "text 1 of 0", "0")),
        *(("2", "text 0 of 1", "1"), ("3", "text 1 of 1", "1")),
    ]
    assert made["images"].manifest["config"]["dataset"] == "coco"
    test = karpathy(tmp_path / "dataset_coco.json", zips, split=["test"])
    store = ImageStore(imported(test, tmp_path / "test")["images"])
    assert store.ids == ["3", "4"]
    assert store.read_bytes("4") == make_picture(4)


def test_karpathy_by_file_name_and_a_split_that_is_not_there(tmp_path: Path) -> None:
    write_karpathy(tmp_path / "dataset_flickr8k.json", cocoid=False)
    packed = tmp_path / "dataset_flickr8k.json.gz"
    packed.write_bytes(gzip.compress((tmp_path / "dataset_flickr8k.json").read_bytes()))
    made = imported(karpathy(packed, [], split=["val"]), tmp_path / "out")
    assert rows(made) == [("4", "text 0 of 2", "102_ab"), ("5", "text 1 of 2", "102_ab")]
    assert made["captions"].manifest["config"]["dataset"] == "flickr8k"
    assert "images" not in made
    with pytest.raises(DataError, match="'dev': .* restval, test, train, val"):
        karpathy(packed, [], split=["dev"])
    (tmp_path / "other.json").write_text('{"images": [{"filename": "a"}]}')
    with pytest.raises(DataError, match="entry 0 of 'images'"):
        karpathy(tmp_path / "other.json", [])
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(DataError, match="lists no 'images'"):
        karpathy(tmp_path / "none.json", [])


def test_flickr30k_tokens(tmp_path: Path, make_picture: Make) -> None:
    lines = [f"{name}.jpg#{k}\tline {k} of {name}" for name in ("10", "9_b") for k in range(5)]
    lines += ["broken line", "10.jpg#0\tonce more"]
    (tmp_path / "results.token").write_text("\n".join(lines) + "\n")
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as tar:
        for name in ("9_b", "10"):
            info = tarfile.TarInfo(f"flickr30k-images/{name}.jpg")
            info.size = len(make_picture(1))
            tar.addfile(info, io.BytesIO(make_picture(1)))
    source = flickr30k(tmp_path / "results.token", [tmp_path / "images.tar.gz"])
    made = imported(source, tmp_path / "out", limit_quarantine=0.5)
    assert ImageStore(made["images"]).ids == ["9_b", "10"]  # as they lie in the packed tar
    assert rows(made)[0] == ("10-0", "line 0 of 10", "10")
    assert len(rows(made)) == 10
    faults = made["captions"].path("quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in faults] == ["line-11", "10-0"]
    (tmp_path / "empty").write_text("nothing here\n")
    with pytest.raises(DataError, match="name.jpg#n"):
        flickr30k(tmp_path / "empty", [])


def test_captions_come_in_the_order_of_their_images(tmp_path: Path) -> None:
    lines = [f"{name}.jpg#{k}\tline {k}" for k in range(3) for name in ("b", "a")]
    (tmp_path / "t.token").write_text("\n".join(lines))
    made = imported(flickr30k(tmp_path / "t.token", []), tmp_path / "out")
    assert [one for one, _, _ in rows(made)] == ["b-0", "b-1", "b-2", "a-0", "a-1", "a-2"]
    assert made["captions"].counts == {"captions": 6, "images": 2}


def test_conceptual_captions_in_both_orders(tmp_path: Path, make_picture: Make) -> None:
    urls = [f"http://x.org/{n}" for n in range(3)]
    (tmp_path / "cc3m.tsv").write_text("".join(f"text {n}\t{url}\n" for n, url in enumerate(urls)))
    (tmp_path / "cc12m.tsv").write_text("".join(f"{url}\ttext {n}\n" for n, url in enumerate(urls)))
    for name in ("cc3m", "cc12m"):
        made = imported(cc(tmp_path / f"{name}.tsv", []), tmp_path / name)
        assert rows(made)[2] == ("000000002-0", "text 2", "000000002")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "000000000.jpg").write_bytes(make_picture(0))
    (folder / "1.jpg").write_bytes(make_picture(1))
    (folder / f"2_{zlib.crc32(urls[2].encode())}").write_bytes(make_picture(2))
    made = imported(cc(tmp_path / "cc3m.tsv", [folder]), tmp_path / "with")
    store = ImageStore(made["images"])
    assert [store.read_bytes(f"{n:09d}") for n in range(3)] == [make_picture(n) for n in range(3)]


def test_img2dataset_shards(tmp_path: Path, make_picture: Make) -> None:
    for shard in (0, 1):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for key in range(2):
                name = f"{shard:05d}{key:04d}"
                parts = {
                    "jpg": make_picture(shard * 2 + key),
                    "json": json.dumps({"caption": "other", "key": name}).encode(),
                    "txt": f"text {name}".encode(),
                }
                for kind, data in parts.items():
                    info = tarfile.TarInfo(f"{name}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    made = imported(cc(tmp_path, []), tmp_path / "out")
    store = ImageStore(made["images"])
    assert store.ids == ["000000000", "000000001", "000010000", "000010001"]
    assert store.read_bytes("000010001") == make_picture(3)
    assert rows(made)[3] == ("000010001-0", "text 000010001", "000010001")
    assert made["images"].manifest["config"]["format"] == "cc"


def test_sharegpt4v_splits_at_a_thousand(tmp_path: Path) -> None:
    def entry(number: int) -> dict[str, Any]:
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": f"long\ntext {number}"}]
        return {"image": f"coco/train2017/{number:012d}.jpg", "conversations": turns}

    path = tmp_path / "share.json"
    path.write_text(json.dumps([entry(number) for number in range(1003)]))
    made = imported(sharegpt4v(path, [], split="test"), tmp_path / "test", protocol="sharegpt4v_1k")
    assert made["captions"].counts == {"captions": 1000, "images": 1000}
    assert made["captions"].manifest["notes"] == {"protocol": "sharegpt4v_1k"}
    assert rows(made)[7][1:] == ("long text 7", "coco--train2017--000000000007")
    train = imported(sharegpt4v(path, [], split="train"), tmp_path / "train")
    assert [text for _, text, _ in rows(train)] == [f"long text {n}" for n in (1000, 1001, 1002)]
    with pytest.raises(DataError, match="'val'"):
        sharegpt4v(path, [], split="val")


def test_urban1k_pairs_text_and_image_by_name(tmp_path: Path, make_picture: Make) -> None:
    with zipfile.ZipFile(tmp_path / "Urban1k.zip", "w") as file:
        for number in (1, 2, 10):
            file.writestr(f"Urban1k/image/{number}.jpg", make_picture(number))
            file.writestr(f"Urban1k/caption/{number}.txt", f"A long text {number}.\n")
        file.writestr("Urban1k/caption/11.txt", "nobody")
    source = urban1k([tmp_path / "Urban1k.zip"])
    made = imported(source, tmp_path / "out", limit_quarantine=0.3)
    assert ImageStore(made["images"]).ids == ["1", "2", "10"]
    assert rows(made)[2] == ("10-0", "A long text 10.", "10")
    with pytest.raises(DataError, match=r"urban_1k has 1000 images .* here are 3 images"):
        imported(source, tmp_path / "no", protocol="urban_1k")
    assert not (tmp_path / "no").exists()
    kept = imported(
        source, tmp_path / "part", protocol="urban_1k", subset=True, limit_quarantine=0.3
    )
    assert kept["captions"].manifest["notes"]["protocol"] == (
        "urban_1k (subset: 3 of 1000 images, 3 of 1000 captions)"
    )


def test_a_protocol_drops_captions_of_broken_images_and_a_plain_import_keeps_them(
    tmp_path: Path, make_picture: Make
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(make_picture(number) if number != 2 else b"no")
        (folder / f"{number}.txt").write_text(f"text {number}")
    plain = imported(urban1k([folder]), tmp_path / "a", limit_quarantine=0.3)
    assert len(rows(plain)) == 4
    under = imported(
        urban1k([folder]),
        tmp_path / "b",
        limit_quarantine=0.3,
        protocol="urban_1k",
        subset=True,
    )
    assert [image for _, _, image in rows(under)] == ["0", "1", "3"]


def test_tables_of_every_kind_hold_the_same_rows(tmp_path: Path, make_picture: Make) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    names = [f"{n}.jpg" for n in range(70)]
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(make_picture(number))
    table = [{"file": name, "text": f"text, {name}"} for name in names]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, table)))
    (tmp_path / "t.json").write_text(json.dumps(table))
    lines = [f'{row["file"]},"{row["text"]}"' for row in table]
    (tmp_path / "t.csv").write_text("\n".join(["file,text", *lines]))
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    columns = {"image_column": "file", "caption_column": "text"}
    found = []
    for kind in ("jsonl", "json", "csv", "parquet"):
        source = parquet([tmp_path / f"t.{kind}"], [folder], **columns)
        made = imported(source, tmp_path / kind)
        found.append((rows(made), ImageStore(made["images"]).ids))
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][0][69] == ("69-0", "text, 69.jpg", "69")
    inside = [
        {"image": {"bytes": make_picture(n), "path": names[n]}, "text": ["one", "two"], "n": n}
        for n in range(70)
    ]
    pq.write_table(pa.Table.from_pylist(inside), tmp_path / "i.parquet", row_group_size=16)
    source = parquet(
        [tmp_path / "i.parquet"], [], image_column="image", caption_column="text", id_column="n"
    )
    made = imported(source, tmp_path / "inside", shard_size=20)
    store = ImageStore(made["images"])
    assert store.ids == [str(n) for n in range(70)]
    assert all(store.read_bytes(str(n)) == make_picture(n) for n in range(70))
    assert rows(made)[3] == ("1-1", "two", "1")
    with pytest.raises(DataError, match="'caption': .* file, text"):
        parquet([tmp_path / "t.csv"], [], image_column="file", caption_column="caption")


@pytest.mark.parametrize("where", ["files", "inside", "captions"])
def test_rows_of_one_image_are_all_its_captions(
    tmp_path: Path, make_picture: Make, where: str
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for number in (0, 1):
        (tmp_path / f"{number}.jpg").write_bytes(make_picture(number))
    said = [(0, "a"), (1, "b"), (0, "c"), (1, "d"), (0, "e")]
    inside = where == "inside"
    table = [
        {"id": f"p{n}", "image": {"bytes": make_picture(n)} if inside else f"{n}.jpg", "caption": t}
        for n, t in said
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    images = [tmp_path] if where == "files" else []
    path = tmp_path / "t.parquet"
    if where == "captions":
        path = tmp_path / "t.jsonl"
        path.write_text("\n".join(map(json.dumps, table)))
    source = parquet([path], images, image_column="image", caption_column="caption", id_column="id")
    made = imported(source, tmp_path / "out")
    assert rows(made) == [
        ("p0-0", "a", "p0"),
        ("p0-1", "c", "p0"),
        ("p0-2", "e", "p0"),
        ("p1-0", "b", "p1"),
        ("p1-1", "d", "p1"),
    ]
    if where != "captions":
        store = ImageStore(made["images"])
        assert {one: store.read_bytes(one) for one in store.ids} == {
            "p0": make_picture(0),
            "p1": make_picture(1),
        }


def test_two_files_of_one_id_are_not_one_image(tmp_path: Path, make_picture: Make) -> None:
    for number in (0, 1):
        (tmp_path / f"{number}.jpg").write_bytes(make_picture(number))
    table = [{"id": "p", "image": f"{n}.jpg", "caption": f"text {n}"} for n in (0, 1)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, table)))
    columns = {"image_column": "image", "caption_column": "caption", "id_column": "id"}
    source = parquet([tmp_path / "t.jsonl"], [tmp_path], **columns)
    made = imported(source, tmp_path / "out", limit_quarantine=0.5)
    assert rows(made) == [("p-0", "text 0", "p")]
    fault = json.loads(made["images"].path("quarantine.jsonl").read_text())
    assert fault["id"] == "p" and "another file" in fault["reason"]


def test_an_import_resumes_and_refuses_other_inputs(tmp_path: Path, make_picture: Make) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(make_picture(number))
        (folder / f"{number}.txt").write_text(f"text {number}")
    whole = imported(urban1k([folder]), tmp_path / "a", shard_size=2)
    again = imported(urban1k([folder]), tmp_path / "a", shard_size=2)
    assert again == whole
    (folder / "5.jpg").write_bytes(make_picture(5))
    (folder / "5.txt").write_text("new")
    with pytest.raises(ArtifactError, match="belongs to another run"):
        imported(urban1k([folder]), tmp_path / "a", shard_size=2)


def test_splits_and_ids_of_karpathy_that_are_null_are_none(tmp_path: Path) -> None:
    entries = [
        {"filename": f"{k}.jpg", "split": split, "cocoid": None}
        | {"sentences": [{"sentid": k, "raw": f"thing {k}"}]}
        for k, split in enumerate((None, "test", "test"))
    ]
    (tmp_path / "d.json").write_text(json.dumps({"images": entries}))
    with pytest.raises(DataError, match="has no split 'val'"):
        karpathy(tmp_path / "d.json", split=["val"])
    made = imported(karpathy(tmp_path / "d.json", split=["test"]), tmp_path / "out")
    assert [image_id for _, _, image_id in rows(made)] == ["1", "2"]


def test_a_question_is_no_caption_of_sharegpt4v(tmp_path: Path) -> None:
    turns = [{"from": "gpt", "value": "a cat"}, {"from": "human", "value": "What is it?"}]
    entries = [{"image": f"{k}.jpg", "conversations": turns[:: (-1) ** k]} for k in range(2)]
    (tmp_path / "s.json").write_text(json.dumps(entries))
    source = sharegpt4v(tmp_path / "s.json")
    made = imported(source, tmp_path / "out", limit_quarantine=1.0)
    assert [text for _, text, _ in rows(made)] == ["a cat"]
    assert made["captions"].counts["quarantined"] == 1
