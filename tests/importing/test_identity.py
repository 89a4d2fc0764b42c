"""Different images never share an id, and a name belongs to its own table."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmail_align.artifacts import Artifact
from gmail_align.data.captions import read_captions
from gmail_align.data.images import ImageStore
from gmail_align.data.questions import read_questions
from gmail_align.errors import DataError
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from worlds.files import add_member

Make = Callable[..., bytes]


def bytes_by_caption(made: dict[str, Artifact]) -> dict[str, bytes]:
    store = ImageStore(made["images"])
    return {one.text: store.read_bytes(one.image_id) for one in read_captions(made["captions"])}


def test_images_inside_parquet_are_told_apart_by_their_bytes(
    tmp_path: Path, make_picture: Make
) -> None:
    seeds = [0, 1, 0, 2, 1, 0]  # all rows name one path
    rows = [
        {"image": {"bytes": make_picture(seed), "path": "1.jpg"}, "caption": f"row {k}"}
        for k, seed in enumerate(seeds)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    made = import_data("parquet", {"source": tmp_path / "t.parquet"}, tmp_path / "out")
    assert made["images"].counts["images"] == 3
    assert bytes_by_caption(made) == {
        f"row {k}": make_picture(seed) for k, seed in enumerate(seeds)
    }


@pytest.mark.parametrize("kind", ["sharegpt4v", "karpathy", "parquet", "flickr30k"])
def test_one_stem_with_two_suffixes_is_two_images(
    tmp_path: Path, make_picture: Make, kind: str
) -> None:
    names = {"1.jpg": make_picture(1), "1.png": make_picture(2, "PNG")}
    (tmp_path / "images").mkdir()
    for name, data in names.items():
        (tmp_path / "images" / name).write_bytes(data)
    entries: dict[str, Any] = {
        "sharegpt4v": [{"image": n, "conversations": [{}, {"value": n}]} for n in names],
        "karpathy": {
            "images": [
                {"filename": n, "split": "test", "sentences": [{"raw": n, "sentid": k}]}
                for k, n in enumerate(names)
            ]
        },
        "parquet": [{"image": n, "caption": n} for n in names],
    }
    path = tmp_path / "notes.json"
    if kind == "flickr30k":
        path.write_text("".join(f"{n}#0\t{n}\n" for n in names))
    else:
        path.write_text(json.dumps(entries[kind]))
    options = {"source": path, "images": [tmp_path / "images"]}
    assert bytes_by_caption(import_data(kind, options, tmp_path / "out")) == names


def test_a_table_names_the_images_of_its_own_folder(tmp_path: Path, make_picture: Make) -> None:
    expected = {}
    for number, part in enumerate(("a", "b")):
        folder = tmp_path / "set" / part
        folder.mkdir(parents=True)
        rows = []
        for k in range(2):
            (folder / f"{k}.jpg").write_bytes(make_picture(10 * number + k))
            rows.append({"image": f"{k}.jpg", "caption": f"{part}{k}"})
            expected[f"{part}{k}"] = make_picture(10 * number + k)
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    places = [[tmp_path / "set"], [tmp_path / "set/a", tmp_path / "set/b"]]
    for number, images in enumerate(places):
        options = {"source": [tmp_path / "set"], "images": images}
        made = import_data("parquet", options, tmp_path / f"out{number}")
        assert bytes_by_caption(made) == expected
    made = import_data("urban1k", {"source": tmp_path / "set"}, tmp_path / "beside")
    assert bytes_by_caption(made) == expected


def test_one_name_in_two_places_of_one_import_is_two_images(
    tmp_path: Path, make_picture: Make
) -> None:
    for number, part in enumerate(("a", "b")):
        (tmp_path / part / "cat").mkdir(parents=True)
        (tmp_path / part / "cat/1.jpg").write_bytes(make_picture(number))
        (tmp_path / part / "dog").mkdir()
        (tmp_path / part / f"dog/{part}.jpg").write_bytes(make_picture(10 + number))
    made = import_data("folder", {"source": [tmp_path / "a", tmp_path / "b"]}, tmp_path / "out")
    store = ImageStore(made["images"])
    assert {store.read_bytes(name) for name in store.ids} == {
        make_picture(seed) for seed in (0, 1, 10, 11)
    }


def split_set(home: Path, make_picture: Make) -> Path:
    for number, split in enumerate(("train", "test")):
        for label in ("cat", "dog"):
            path = home / split / label / "1.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(make_picture(number))
    return home


def test_splits_are_not_classes_and_not_one_set(tmp_path: Path, make_picture: Make) -> None:
    source = split_set(tmp_path / "set", make_picture)
    with pytest.raises(DataError, match="test and train.*--split"):
        import_data("folder", {"source": source}, tmp_path / "out")
    made = import_data("folder", {"source": source, "split": "test"}, tmp_path / "out")
    assert json.loads(made["classes"].path("classes.json").read_text()).keys() == {"cat", "dog"}
    assert ImageStore(made["images"]).ids == ["cat--1", "dog--1"]
    assert ImageStore(made["images"]).read_bytes("cat--1") == make_picture(1)
    whole = import_data("folder", {"source": source, "split": "all"}, tmp_path / "all")
    assert whole["images"].counts["images"] == 4
    assert whole["classes"].counts["classes"] == 2
    with pytest.raises(DataError, match="does not hold the split 'val'"):
        import_data("folder", {"source": source, "split": "val"}, tmp_path / "val")
    with pytest.raises(DataError, match="--split"):
        import_data("urban1k", {"source": source}, tmp_path / "beside")


def test_tables_of_two_splits_are_not_one_set(tmp_path: Path, make_picture: Make) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows = [{"image": {"bytes": make_picture(len(split)), "path": None}, "caption": split}]
        path = tmp_path / f"data/{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match="train and val"):
        import_data("parquet", {"source": tmp_path / "data"}, tmp_path / "out")
    options = {"source": tmp_path / "data", "split": "val"}
    made = import_data("parquet", options, tmp_path / "out")
    assert [one.text for one in read_captions(made["captions"])] == ["validation"]


def test_paths_that_begin_again_in_every_parquet_file(tmp_path: Path, make_picture: Make) -> None:
    expected = {}
    for file in range(2):
        rows = []
        for k in range(6):
            seed = 10 * file + k
            rows.append(
                {"image": {"bytes": make_picture(seed), "path": f"{k}.jpg"}, "caption": f"{seed}"}
            )
            expected[f"{seed}"] = make_picture(seed)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{file}.parquet", row_group_size=4)
    made = import_data("parquet", {"source": tmp_path}, tmp_path / "out")
    assert bytes_by_caption(made) == expected


@pytest.mark.parametrize("stem", ["x" * 120, "dir/name.v1", "ключ"])
@pytest.mark.parametrize("kind", ["coco", "karpathy", "scienceqa", "mmmu", "folder"])
def test_an_id_that_cannot_name_a_file_is_shortened_and_stays_apart(
    tmp_path: Path, make_picture: Make, kind: str, stem: str
) -> None:
    keys = [f"{stem}-{k}" for k in range(3)] + ["plain"]
    files = [tmp_path / f"images/{k}.png" for k in range(4)]
    if kind == "folder":
        files = [tmp_path / "images" / key.replace("/", ":") / "a.png" for key in keys]
    if kind == "scienceqa":
        files = [tmp_path / "images/test" / key / "image.png" for key in keys]
    for k, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(make_picture(k, "PNG"))
    names = [file.name for file in files]
    lists: dict[str, Any] = {
        "coco": {
            "images": [{"id": key, "file_name": n} for key, n in zip(keys, names, strict=True)],
            "annotations": [{"id": f"{key}#0", "image_id": key, "caption": key} for key in keys],
        },
        "karpathy": {
            "images": [
                {
                    "cocoid": key,
                    "filename": n,
                    "split": "test",
                    "sentences": [{"raw": key, "sentid": key}],
                }
                for key, n in zip(keys, names, strict=True)
            ]
        },
        "scienceqa": {
            key: {
                "question": key,
                "choices": ["a", "b"],
                "answer": 0,
                "split": "test",
                "image": "image.png",
            }
            for key in keys
        },
        "mmmu": [
            {"id": key, "question": key, "options": ["a", "b"], "answer": "A", "image_1": n}
            for key, n in zip(keys, names, strict=True)
        ],
    }
    path = tmp_path / {"scienceqa": "problems.json", "mmmu": "validation.json"}.get(kind, "a.json")
    path.write_text(json.dumps(lists.get(kind)))
    option = {"coco": "annotations", "karpathy": "annotations"}.get(kind, "source")
    options: dict[str, Any] = {option: path, "images": [tmp_path / "images"]}
    if kind == "folder":
        options = {"source": [tmp_path / "images"]}
    if kind == "scienceqa":
        options["images"] = [tmp_path]
    made = import_data(kind, options, tmp_path / "out")
    store = ImageStore(made["images"])
    assert len(store) == 4
    if "questions" in made:
        stored = {
            one.question: store.read_bytes(one.image_ids[0])
            for one in read_questions(made["questions"])
        }
    else:
        stored = bytes_by_caption(made)
    assert sorted(stored.values()) == sorted(make_picture(k, "PNG") for k in range(4))
    if kind != "folder":
        assert stored == {key: make_picture(k, "PNG") for k, key in enumerate(keys)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_picture(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def left_out(artifact: Artifact) -> list[str]:
    path = artifact.path("quarantine.jsonl")
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_one_file_is_one_image_however_it_is_spelled(tmp_path: Path, make_picture: Make) -> None:
    write_picture(tmp_path / "images/a/caf\u00e9.jpg", make_picture(1))
    names = ["a/caf\u00e9.jpg", "a\\caf\u00e9.jpg", "a/cafe\u0301.jpg", "./a/caf\u00e9.jpg "]
    for kind in ("parquet", "sharegpt4v"):
        entries = [
            {"image": name, "caption": name, "conversations": [{}, {"value": f"text {k}"}]}
            for k, name in enumerate(names)
        ]
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(entries))
        options = {"source": path, "images": [tmp_path / "images"]}
        made = import_data(kind, options, tmp_path / kind)
        assert made["images"].counts["images"] == 1
        assert made["captions"].counts == {"captions": len(names), "images": 1}


@pytest.mark.parametrize("names", [("train/1.jpg", "val/1.jpg"), ("1.jpg", "set/1.jpg")])
@pytest.mark.parametrize("kind", ["coco", "karpathy", "jsonl"])
def test_a_file_that_two_names_stand_for_is_the_image_of_neither(
    tmp_path: Path, make_picture: Make, kind: str, names: tuple[str, str]
) -> None:
    inner = "1.jpg" if "/" in names[0] else "set/1.jpg"
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr(inner, make_picture(1))
        file.writestr("set/2.jpg", make_picture(2))
    every = [*names, "2.jpg"]
    if kind == "jsonl":
        path = write_rows(tmp_path / "t.jsonl", [{"image": n, "caption": n} for n in every])
    else:
        path = tmp_path / "captions.json"
        images = [
            {
                "id": k,
                "file_name": n,
                "filename": n,
                "split": "test",
                "sentences": [{"raw": n, "sentid": k}],
            }
            for k, n in enumerate(every)
        ]
        notes = [{"id": k, "image_id": k, "caption": n} for k, n in enumerate(every)]
        path.write_text(json.dumps({"images": images, "annotations": notes}))
    options = {"source": path, "images": [tmp_path / "images.zip"]}
    write = ImportOptions(limit_quarantine=1.0)
    made = import_data(kind, options, tmp_path / "out", write)
    store = ImageStore(made["images"])
    assert [store.read_bytes(one) for one in store.ids] == [make_picture(2)]
    assert store.ids == ["2"]
    assert made["captions"].counts["captions"] == 3


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_beside_its_table_is_not_taken_from_elsewhere(
    tmp_path: Path, make_picture: Make, packed: bool
) -> None:
    for k, part in enumerate(("a", "b")):
        write_picture(tmp_path / part / "images/1.jpg", make_picture(k))
        write_rows(tmp_path / part / "t.jsonl", [{"image": "images/1.jpg", "caption": part}])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(tmp_path / "a/images/1.jpg", "images/1.jpg")
    tables = [tmp_path / part / "t.jsonl" for part in ("a", "b")]
    options = {"source": tables, "images": [tmp_path / ("a.zip" if packed else "a")]}
    write = ImportOptions(limit_quarantine=1.0)
    if packed:
        with pytest.raises(DataError, match=r"a/images/1\.jpg"):
            import_data("jsonl", options, tmp_path / "out", write)
        return
    made = import_data("jsonl", options, tmp_path / "out", write)
    assert left_out(made["images"]) == ["b--images--1"]
    store = ImageStore(made["images"])
    assert [store.read_bytes(one) for one in store.ids] == [make_picture(0)]


def test_places_of_one_name_keep_the_images_of_their_tables(
    tmp_path: Path, make_picture: Make
) -> None:
    for k, part in enumerate(("a", "b")):
        write_picture(tmp_path / part / "images/1.jpg", make_picture(k))
        write_rows(tmp_path / part / "t.jsonl", [{"image": "images/1.jpg", "caption": part}])
    options = {
        "source": [tmp_path / part / "t.jsonl" for part in ("a", "b")],
        "images": [tmp_path / part / "images" for part in ("a", "b")],
    }
    made = import_data("jsonl", options, tmp_path / "out")
    assert bytes_by_caption(made) == {"a": make_picture(0), "b": make_picture(1)}
    options["source"] = [write_rows(tmp_path / "c.jsonl", [{"image": "images/1.jpg"}])]
    with pytest.raises(DataError, match="images-0 and images-1"):
        import_data("jsonl", {**options, "caption_column": "image"}, tmp_path / "out2")


@pytest.mark.parametrize(
    "shards",
    [
        [{"jpg": 0, "txt": "a"}, {"txt": "b\nb too"}],
        [{"jpg": 0}, {"txt": "b"}],
        [{"txt": "b"}, {"jpg": 0, "txt": "a"}],
    ],
)
def test_captions_of_one_sample_never_describe_another_of_its_key(
    tmp_path: Path, make_picture: Make, shards: list[dict[str, Any]]
) -> None:
    for number, members in enumerate(shards):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for kind, value in members.items():
                add_member(tar, f"k.{kind}", value.encode() if value else make_picture(value))
            add_member(tar, f"other{number}.jpg", make_picture(5))
            add_member(tar, f"other{number}.txt", b"other")
    write = ImportOptions(limit_quarantine=1.0)
    made = import_data("webdataset", {"source": [tmp_path]}, tmp_path / "out", write)
    store = ImageStore(made["images"])
    bound = [one for one in read_captions(made["captions"]) if one.image_id == "k"]
    assert {one.text for one in bound} <= ({"a"} if "k" in store else {"b"})
    lines = sum(len(one.get("txt", "").splitlines()) for one in shards)
    refused = sum(name.startswith("k-") for name in left_out(made["captions"])) if lines else 0
    assert len(bound) + refused == lines


def test_members_of_shards_that_are_not_read_are_counted(
    tmp_path: Path, make_picture: Make
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in [("k.jpg", make_picture(1)), ("k.cls", b"1"), ("k.more.txt", b"b")]:
            add_member(tar, name, data)
    made = import_data("webdataset", {"source": [tmp_path / "0.tar"]}, tmp_path / "out")
    manifest = json.loads(made["images"].path("manifest.json").read_text())
    assert manifest["notes"]["passed_over"] == {"cls": 1, "txt": 1}
    with tarfile.open(tmp_path / "1.tar", "w") as tar:
        add_member(tar, "m.jpg", make_picture(1))
        for k in range(300):
            add_member(tar, f"m.k{k}", b"")
    made = import_data("webdataset", {"source": [tmp_path / "1.tar"]}, tmp_path / "many")
    counts = json.loads(made["images"].path("manifest.json").read_text())["notes"]["passed_over"]
    assert sum(counts.values()) == 300
    assert len(counts) <= 101


@pytest.mark.parametrize("path", [None, "1.jpg", "own"])
def test_equal_bytes_inside_parquet_are_one_image(
    tmp_path: Path, make_picture: Make, path: str | None
) -> None:
    seeds = [0, 0, 1, 0, 1]
    rows = [
        {
            "image": {
                "bytes": make_picture(seed),
                "path": f"{k}.jpg" if path == "own" else path,
            },
            "caption": f"row {k}",
        }
        for k, seed in enumerate(seeds)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    made = import_data("parquet", {"source": tmp_path / "t.parquet"}, tmp_path / "out")
    assert made["images"].counts["images"] == 2
    assert bytes_by_caption(made) == {
        f"row {k}": make_picture(seed) for k, seed in enumerate(seeds)
    }


def test_a_number_is_one_id_however_it_is_stored(tmp_path: Path, make_picture: Make) -> None:
    for name in ("1.jpg", "2.jpg"):
        write_picture(tmp_path / "images" / name, make_picture(int(name[0])))
    ids = [7, "7", 7.0, None, "", True, [7]]
    rows = [{"image": "1.jpg", "caption": f"row {k}", "id": one} for k, one in enumerate(ids)]
    rows += [{"image": "2.jpg", "caption": "another", "id": "07"}]
    options = {
        "source": [write_rows(tmp_path / "t.jsonl", rows)],
        "images": [tmp_path / "images"],
        "id_column": "id",
    }
    made = import_data("jsonl", options, tmp_path / "out", ImportOptions(limit_quarantine=1.0))
    bound = {one.text: one.image_id for one in read_captions(made["captions"])}
    assert bound == {
        **{f"row {k}": "7" for k in (0, 1, 2)},
        **{f"row {k}": "7" for k in (3, 4)},  # the file has that id already
        "another": "07",
    }
    assert left_out(made["captions"]) == ["row-5", "row-6"]


def test_whole_numbers_of_coco_may_be_floats(tmp_path: Path, make_picture: Make) -> None:
    write_picture(tmp_path / "images/1.jpg", make_picture(1))
    data = {
        "images": [{"id": 1.0, "file_name": "1.jpg"}],
        "annotations": [{"id": 3.0, "image_id": 1, "caption": "a"}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(data))
    options = {"source": tmp_path / "captions.json", "images": [tmp_path / "images"]}
    made = import_data("coco", options, tmp_path / "out")
    assert [(one.caption_id, one.image_id) for one in read_captions(made["captions"])] == [
        ("3", "1")
    ]
    data["images"][0]["id"] = 1.5
    (tmp_path / "captions.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="'id'"):
        import_data("coco", options, tmp_path / "out2")
