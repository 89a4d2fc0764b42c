"""Everything that a source says is imported, or listed with a reason: the counts add up."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.data.captions import read_captions
from gmail_align.data.images import ImageStore
from gmail_align.errors import DataError
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.rows import table_rows
from gmail_align.importing.run import import_data
from gmail_align.importing.streams import Lines
from worlds.files import add_member

Make = Callable[..., bytes]
ALL = ImportOptions(limit_quarantine=1.0)


def left_out(artifact: Artifact) -> dict[str, str]:
    path = artifact.path("quarantine.jsonl")
    return {row["id"]: row["reason"] for row in read_jsonl(path)} if path.exists() else {}


def texts(made: dict[str, Artifact]) -> list[str]:
    return [one.text for one in read_captions(made["captions"])]


TRICKY = ['"Stop" says a red sign.', '"Hello, a man waves.', "A blue cube.", 'A 12" ruler.']


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_quotation_marks_swallow_no_rows(tmp_path: Path, kind: str) -> None:
    sign = "\t" if kind == "tsv" else "|"
    lines = [f"image{sign}caption", *(f"{k}.jpg{sign}{text}" for k, text in enumerate(TRICKY))]
    path = tmp_path / f"t.{kind}"
    path.write_text("\n".join([*lines, f'9.jpg{sign}"quoted ""as"" a whole"']))
    made = import_data("parquet", {"source": path}, tmp_path / "out")
    assert texts(made) == [*TRICKY, 'quoted "as" a whole']


def test_a_quoted_field_of_a_csv_goes_over_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,caption\n1.jpg,"one,\ntwo"\n2.jpg,"never closed\n3.jpg,three\n')
    made = import_data("parquet", {"source": path}, tmp_path / "out")
    assert texts(made) == ["one, two", '"never closed', "three"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_with_a_byte_order_mark_are_read(
    tmp_path: Path, encoding: str, packed: bool
) -> None:
    text = "image;caption\r\nä.jpg;Größe, 猫\r\n"
    data = text.encode(encoding)
    data = codecs.BOM_UTF16_BE + data if encoding == "utf-16-be" else data
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert list(table_rows(path, ["image", "caption"])) == [
        (0, {"image": "ä.jpg", "caption": "Größe, 猫"})
    ]
    tokens = tmp_path / "t.token"
    tokens.write_bytes("1.jpg#0\tGröße\n".encode(encoding.removesuffix("-be")))
    made = import_data("flickr30k", {"source": tokens}, tmp_path / "out")
    assert texts(made) == ["Größe"]


def test_rows_with_other_fields_and_encodings_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"image, caption\n1.jpg, one\n2.jpg, two, more\n3.jpg\n"
        b"4.jpg, caf\xe9\n\n5.jpg, \xe2\x80\x8b\n"
    )
    made = import_data("parquet", {"source": path}, tmp_path / "out", ALL)
    assert texts(made) == ["one"]
    faults = left_out(made["captions"])
    assert list(faults) == ["row-1", "row-2", "row-3", "5-0"]
    assert "3 fields" in faults["row-1"]
    assert "1 fields" in faults["row-2"]
    assert faults["row-3"] == "is not UTF-8"
    assert "is empty" in faults["5-0"]


def test_plain_texts_and_records_of_texts(tmp_path: Path, make_picture: Make) -> None:
    (tmp_path / "p.txt").write_text('a cat\na dog, "quoted"\tand a tab\n\n')
    made = import_data("parquet", {"source": tmp_path / "p.txt"}, tmp_path / "txt")
    assert texts(made) == ["a cat", 'a dog, "quoted" and a tab']
    (tmp_path / "p.json").write_text(json.dumps(["a cat", "a dog"]))
    made = import_data("parquet", {"source": tmp_path / "p.json"}, tmp_path / "json")
    assert texts(made) == ["a cat", "a dog"]
    records = pa.array([[{"raw": "a", "n": 1}, {"raw": "b", "n": 2}]])
    image = pa.array([make_picture(1)], pa.binary())
    pq.write_table(pa.table({"image": image, "said": records}), tmp_path / "t.parquet")
    for number, column in enumerate(("said", "said.raw", "said[].raw")):
        options = {"source": tmp_path / "t.parquet", "caption_column": column}
        made = import_data("parquet", options, tmp_path / f"o{number}")
        assert texts(made) == ["a", "b"]


def test_lists_of_images_have_one_image(tmp_path: Path, make_picture: Make) -> None:
    images = [[{"bytes": make_picture(k), "path": None} for k in range(n)] for n in (1, 2)]
    rows = [{"images": own, "caption": "a"} for own in images]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    options = {"source": tmp_path / "t.parquet", "image_column": "images"}
    made = import_data("parquet", options, tmp_path / "out", ALL)
    assert made["images"].counts["images"] == 1
    assert "list of 2 images" in left_out(made["images"])["row-1"]


def test_other_kinds_of_files_are_named(tmp_path: Path, make_picture: Make) -> None:
    home = tmp_path / "set"
    home.mkdir()
    for name, data in {
        "a.jpg": make_picture(1),
        "b.jfif": make_picture(2),
        "c.heic": b"\0\0\0\x18ftypheic" + bytes(60),
        "d.pgm": b"P5 2 1 255 ab",
        "e.md": b"notes",
    }.items():
        (home / name).write_bytes(data)
    made = import_data("folder", {"source": home}, tmp_path / "out", ALL)
    assert ImageStore(made["images"]).ids == ["a", "b", "d"]
    assert "HEIC" in left_out(made["images"])["c"]
    assert made["images"].manifest["notes"]["passed_over"] == {"md": 1}


@pytest.mark.parametrize("importer", ["coco", "karpathy", "sharegpt4v", "scienceqa"])
def test_an_archive_in_the_place_of_a_file_is_named(tmp_path: Path, importer: str) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(b"PK\x03\x04" + bytes(30))
    with pytest.raises(DataError, match="zip archive: unpack it"):
        import_data(importer, {"source": path}, tmp_path / "out")


# --- the counts add up, for every importer ---------------------------------------------------

BAD = ["", "  ", "\u200b", "a\0b", "x" * 30_000]


class Drawn:
    """A set with faults of every kind, and how many captions and images it speaks of."""

    def __init__(self, home: Path, seed: int, make_picture: Make) -> None:
        rng = random.Random(seed)
        self.home = home
        self.images = home / "images"
        self.images.mkdir(parents=True)
        self.rows = []
        for number in range(12):
            name = f"{number}.jpg"
            state = rng.choice(["good", "good", "missing", "broken"])
            if state != "missing":
                data = make_picture(number)
                (self.images / name).write_bytes(data if state == "good" else data[:-200])
            few = [rng.choice([f"text {number}", *BAD]) for _ in range(rng.randint(1, 3))]
            self.rows.append((name, few))
        self.captions = sum(len(few) for _, few in self.rows)


def write_karpathy(drawn: Drawn) -> dict[str, Any]:
    ids = iter(range(1000))
    rows = [
        {
            "filename": name,
            "split": "test",
            "sentences": [{"raw": text, "sentid": next(ids)} for text in few],
        }
        for name, few in drawn.rows
    ]
    (drawn.home / "k.json").write_text(json.dumps({"images": rows}))
    return {"source": drawn.home / "k.json", "images": [drawn.images]}


def write_coco(drawn: Drawn) -> dict[str, Any]:
    images = [{"id": k, "file_name": name} for k, (name, _) in enumerate(drawn.rows)]
    pairs = [(k, text) for k, (_, few) in enumerate(drawn.rows) for text in few]
    notes = [{"id": n, "image_id": k, "caption": text} for n, (k, text) in enumerate(pairs)]
    (drawn.home / "c.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return {"source": drawn.home / "c.json", "images": [drawn.images]}


def write_sharegpt4v(drawn: Drawn) -> dict[str, Any]:
    rows: list[Any] = [
        {"image": name, "conversations": [{}, {"value": text}]}
        for name, few in drawn.rows
        for text in few
    ]
    (drawn.home / "s.json").write_text(json.dumps([*rows, 7, {"image": "x.jpg"}]))
    drawn.captions += 2
    return {"source": drawn.home / "s.json", "images": [drawn.images]}


def write_flickr30k(drawn: Drawn) -> dict[str, Any]:
    lines = [f"{n}#{k}\t{text}" for n, few in drawn.rows for k, text in enumerate(few)]
    (drawn.home / "t.token").write_bytes("\n".join([*lines, "no tab"]).encode() + b"\n1#9\t\xff")
    drawn.captions += 2
    return {"source": drawn.home / "t.token", "images": [drawn.images]}


def write_cc(drawn: Drawn) -> dict[str, Any]:
    lines = [f"{text}\thttp://x.org/{k}" for k, (_, few) in enumerate(drawn.rows) for text in few]
    (drawn.home / "c.tsv").write_text("\n".join([*lines, "one field", "a\tb\tc"]))
    drawn.captions += 2
    return {"source": drawn.home / "c.tsv"}


def write_table(drawn: Drawn, kind: str) -> dict[str, Any]:
    pairs = [(name, text) for name, few in drawn.rows for text in few]
    path = drawn.home / f"t.{kind}"
    if kind == "jsonl":
        rows = [json.dumps({"image": name, "caption": text}) for name, text in pairs]
        path.write_text("\n".join([*rows, "{", "7"]))
    elif kind == "parquet":
        names, few = zip(*pairs, strict=True)
        pq.write_table(pa.table({"image": names, "caption": few}), path)
        drawn.captions -= 2
    else:
        sign = "\t" if kind == "tsv" else ","
        lines = [f"{name}{sign}{text}" for name, text in pairs]
        lines = [f"image{sign}caption", *lines, f"a{sign}b{sign}c", "one"]
        path.write_text("\n".join(lines))
    drawn.captions += 2
    return {"source": path, "images": [drawn.images]}


def write_texts_next_to_images(drawn: Drawn) -> dict[str, Any]:
    drawn.captions = 0
    for name, few in drawn.rows:
        if (drawn.images / name).exists():
            lines = [text for text in few if text.strip()]
            (drawn.images / name).with_suffix(".txt").write_text("\n".join(few))
            drawn.captions += len(lines) or 1
    (drawn.images / "alone.txt").write_text("no image")
    drawn.captions += 1
    return {"source": drawn.images}


def write_metadata(drawn: Drawn) -> dict[str, Any]:
    rows: list[Any] = [
        {"file_name": name, "text": text} for name, few in drawn.rows for text in few
    ]
    rows.append({"file_name": drawn.rows[0][0], "captions": ["whole", None, 3, {"raw": "x"}]})
    (drawn.images / "metadata.jsonl").write_text("\n".join([*map(json.dumps, rows), "{", "7"]))
    drawn.captions += 4 + 2
    return {"source": drawn.images}


def write_shards(drawn: Drawn) -> dict[str, Any]:
    drawn.captions = 0
    with tarfile.open(drawn.home / "0.tar", "w") as tar:
        for name, few in drawn.rows:
            if (drawn.images / name).exists():
                add_member(tar, name, (drawn.images / name).read_bytes())
            add_member(tar, name.replace("jpg", "txt"), "\n".join(few).encode())
            drawn.captions += len([text for text in few if text.strip()]) or 1
    return {"source": drawn.home / "0.tar"}


WRITERS: dict[str, tuple[str, Callable[[Drawn], dict[str, Any]]]] = {
    "karpathy": ("karpathy", write_karpathy),
    "coco": ("coco", write_coco),
    "sharegpt4v": ("sharegpt4v", write_sharegpt4v),
    "flickr30k": ("flickr30k", write_flickr30k),
    "cc": ("cc", write_cc),
    "jsonl": ("parquet", lambda drawn: write_table(drawn, "jsonl")),
    "csv": ("parquet", lambda drawn: write_table(drawn, "csv")),
    "tsv": ("parquet", lambda drawn: write_table(drawn, "tsv")),
    "parquet": ("parquet", lambda drawn: write_table(drawn, "parquet")),
    "urban1k": ("urban1k", write_texts_next_to_images),
    "imagefolder": ("imagefolder", write_metadata),
    "webdataset": ("webdataset", write_shards),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", WRITERS)
def test_captions_and_images_are_imported_or_listed(
    tmp_path: Path, make_picture: Make, kind: str, seed: int
) -> None:
    importer, write = WRITERS[kind]
    drawn = Drawn(tmp_path / "set", seed, make_picture)
    options = write(drawn)
    made = import_data(importer, options, tmp_path / "out", ALL)
    counts = made["captions"].counts
    assert counts["captions"] + counts.get("quarantined", 0) == drawn.captions
    assert len(texts(made)) == counts["captions"]
    if kind == "cc":
        return
    images = made["images"].counts
    whole_folder = kind in ("urban1k", "imagefolder")
    there = len(list(drawn.images.glob("*.jpg"))) if whole_folder else len(drawn.rows)
    assert images["images"] + images["quarantined"] == there
    store = ImageStore(made["images"])
    for image_id in store.ids:
        assert store.read_bytes(image_id) in {
            path.read_bytes() for path in drawn.images.glob("*.jpg")
        }


def broken_problem(rng: random.Random, number: int) -> dict[str, Any]:
    """A question of ScienceQA, sometimes without an answer or with one that no choice has."""
    problem = {"question": "?", "choices": ["a", "b"], "answer": number % 2, "split": "test"}
    problem |= rng.choice([{}, {}, {"answer": 9}, {"choices": None}, {"image": f"{number}.jpg"}])
    return problem


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("importer", ["scienceqa", "mmmu"])
def test_questions_are_imported_or_listed(
    tmp_path: Path, make_picture: Make, importer: str, seed: int
) -> None:
    rng, count = random.Random(seed), 14
    images = tmp_path / "images"
    problems = {str(number): broken_problem(rng, number) for number in range(count)}
    problems["0"] |= {"image": "0.jpg", "answer": 0, "choices": ["a", "b"]}
    if importer == "scienceqa":
        for number in range(0, count, 2):
            path = images / f"test/{number}/{number}.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(make_picture(number))
        (tmp_path / "problems.json").write_text(json.dumps(problems))
        options: dict[str, Any] = {"source": tmp_path / "problems.json", "images": [images]}
    else:
        images.mkdir()
        (images / "0.jpg").write_bytes(make_picture(0))
        rows: list[Any] = [
            {
                "id": f"validation_A_{number}",
                "question": "?",
                "options": problem["choices"],
                "answer": "AB"[number % 2] if problem["answer"] != 9 else "Z",
                "image_1": problem.get("image") and f"{number % 2}.jpg",
            }
            for number, problem in enumerate(problems.values())
        ]
        rows[3:5] = [7, {"question": "no id"}]
        (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, rows)))
        options = {"source": tmp_path / "v.jsonl", "images": [images]}
    made = import_data(importer, options, tmp_path / "out", ALL)
    counts = made["questions"].counts
    assert counts["questions"] + counts.get("quarantined", 0) == count
    stored = set(ImageStore(made["images"]).ids) if "images" in made else set()
    for row in read_jsonl(made["questions"].path("questions.jsonl")):
        assert set(row["image_ids"]) <= stored


@pytest.mark.parametrize("seed", range(3))
def test_images_of_classes_are_imported_or_listed(
    tmp_path: Path, make_picture: Make, seed: int
) -> None:
    drawn = Drawn(tmp_path / "set", seed, make_picture)
    there = list(drawn.images.glob("*.jpg"))
    for number, path in enumerate(there):
        (drawn.images / f"c{number % 3}").mkdir(exist_ok=True)
        path.rename(drawn.images / f"c{number % 3}" / path.name)
    made = import_data("folder", {"source": drawn.images}, tmp_path / "out", ALL)
    counts = made["images"].counts
    assert counts["images"] + counts["quarantined"] == len(there)
    labels = json.loads(made["classes"].path("labels.json").read_text())
    assert sorted(labels) == sorted(ImageStore(made["images"]).ids)
    assert all(name.startswith(f"{label}--") for name, label in labels.items())


def test_json_lines_under_the_name_json_are_rows(tmp_path: Path) -> None:
    rows = [{"image": f"{k}.jpg", "caption": f"thing {k}"} for k in range(3)]
    for name, few in (("many.json", rows), ("one.json", rows[:1])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in few))
        made = import_data("parquet", {"source": tmp_path / name}, tmp_path / f"{name}.out")
        assert texts(made) == [row["caption"] for row in few]


@pytest.mark.parametrize("importer", ["parquet", "karpathy", "coco"])
def test_what_follows_the_end_of_a_json_file_is_not_lost(tmp_path: Path, importer: str) -> None:
    image: dict[str, Any] = {"filename": "1.jpg", "split": "test", "file_name": "1.jpg", "id": 1}
    image["sentences"] = [{"raw": "a", "sentid": 1}]
    notes = {"images": [image], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}
    value: Any = [{"image": "1.jpg", "caption": "a"}] if importer == "parquet" else notes
    path = tmp_path / "t.json"
    path.write_text(json.dumps(value, indent=1) + "\n" + json.dumps(value, indent=1))
    with pytest.raises(DataError, match=r"t\.json is not json"):
        import_data(importer, {"source": path}, tmp_path / "out")


def test_a_record_that_is_not_utf_8_is_left_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b'image,caption\n1.jpg,"one\ncaf\xe9, two"\n2.jpg,"th\xe9,\n3.jpg,no"\n4.jpg,b\n'
    )
    made = import_data("parquet", {"source": path}, tmp_path / "out", ALL)
    assert texts(made) == ["b"]
    assert left_out(made["captions"]) == {"row-0": "is not UTF-8", "row-1": "is not UTF-8"}


def test_lines_may_end_with_cr_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'image,caption\r1.jpg,"one,\rmore"\r2.jpg,two\r')
    made = import_data("parquet", {"source": tmp_path / "t.csv"}, tmp_path / "out")
    assert texts(made) == ["one, more", "two"]
    (tmp_path / "t.txt").write_bytes(b"one\rtwo\r\nthree")
    made = import_data("parquet", {"source": tmp_path / "t.txt"}, tmp_path / "lines")
    assert texts(made) == ["one", "two", "three"]


def test_lines_of_any_ending_are_cut_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmail_align.importing.streams.MAX_LINE", 8)
    lines = Lines(io.BytesIO(b"a\rbb\rcccc\rdd\r\n0123456789\rx"))
    read = list(iter(lines.read, b""))
    assert read == [b"a\r", b"bb\r", b"cccc\r", b"dd\r\n", b"01234567", b"89\r", b"x"]


def test_a_first_line_that_names_the_separator_is_honoured(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('sep=;\nimage;"the\ncaption"\n1.jpg;one\n')
    options = {"source": path, "caption_column": "the\ncaption"}
    assert texts(import_data("parquet", options, tmp_path / "out")) == ["one"]


def test_two_columns_of_one_name_are_refused_in_parquet_too(
    tmp_path: Path, make_picture: Make
) -> None:
    columns = [pa.array([make_picture(1)]), pa.array(["a"]), pa.array(["b"])]
    table = pa.Table.from_arrays(columns, names=["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="2 columns named 'caption'"):
        import_data("parquet", {"source": tmp_path / "t.parquet"}, tmp_path / "out")


@pytest.mark.parametrize("kind", ["view", "fixed", "fixed_list"])
def test_bytes_of_every_arrow_type_are_images(
    tmp_path: Path, make_picture: Make, kind: str
) -> None:
    data = make_picture(1)
    columns = {
        "view": pa.array([data], pa.binary_view()),
        "fixed": pa.array([data], pa.binary(len(data))),
        "fixed_list": pa.array([[data]], pa.list_(pa.binary(), 1)),
    }
    pq.write_table(pa.table({"image": columns[kind], "caption": ["a"]}), tmp_path / "t.parquet")
    made = import_data("parquet", {"source": tmp_path / "t.parquet"}, tmp_path / "out")
    assert ImageStore(made["images"]).read_bytes("row-0") == data


def test_every_image_under_a_key_with_a_dot_is_listed(tmp_path: Path, make_picture: Make) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.jpg", "b.left.jpg", "b.right.jpg"):
            add_member(tar, name, make_picture(len(name)))
    made = import_data("webdataset", {"source": tmp_path / "t.tar"}, tmp_path / "out", ALL)
    reasons = [row["reason"] for row in read_jsonl(made["images"].path("quarantine.jsonl"))]
    assert all(any(name in one for one in reasons) for name in ("b.left.jpg", "b.right.jpg"))
    assert sum("ends at a dot" in reason for reason in reasons) == 2


@pytest.mark.parametrize(
    "cell", ['["one, \'a\'", "two"]', "[\"one, 'a'\", 'two']", "[\n'one, \\'a\\'',\n'two',\n]"]
)
@pytest.mark.parametrize("kind", ["csv", "imagefolder"])
def test_a_text_that_holds_a_list_is_several_captions(
    tmp_path: Path, make_picture: Make, kind: str, cell: str
) -> None:
    (tmp_path / "1.jpg").write_bytes(make_picture(1))
    rows = [["file_name", "caption"], ["1.jpg", cell]]
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    options: dict[str, Any] = {"source": [tmp_path]}
    if kind == "csv":
        options |= {"images": [tmp_path], "image_column": "file_name"}
    assert texts(import_data(kind, options, tmp_path / "out")) == ["one, 'a'", "two"]


@pytest.mark.parametrize("cell", ["['one' 'two']", "['one'\n 'two']", "['one', two']"])
def test_a_list_that_cannot_be_read_is_no_caption(tmp_path: Path, cell: str) -> None:
    rows = [{"caption": cell}, {"caption": "[a sign] in brackets"}, {"caption": "[1, 2]"}]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    made = import_data("jsonl", {"source": tmp_path / "t.jsonl"}, tmp_path / "out", ALL)
    assert texts(made) == ["[a sign] in brackets", "[1, 2]"]
    assert left_out(made["captions"]).keys() == {"row-0-0"}


ROWS = [{"image": "1.jpg", "caption": "one"}, {"image": "2.jpg", "caption": "two"}]
COLUMNS = {"image": ["1.jpg", "2.jpg"], "caption": ["one", "two"]}


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        COLUMNS,
        {name: dict(enumerate(values)) for name, values in COLUMNS.items()},
        {"kind": "train", "licenses": [], "data": ROWS},
        {"1.jpg": "one", "2.jpg": ["two"]},
    ],
    ids=["records", "columns", "numbered", "a key", "names"],
)
def test_json_of_any_orientation_gives_its_rows(
    tmp_path: Path, make_picture: Make, value: Any
) -> None:
    for k in (1, 2):
        (tmp_path / f"{k}.jpg").write_bytes(make_picture(k))
    (tmp_path / "t.json").write_text(json.dumps(value))
    options = {"source": tmp_path / "t.json", "images": [tmp_path]}
    made = import_data("parquet", options, tmp_path / "out")
    bound = {one.text: one.image_id for one in read_captions(made["captions"])}
    assert bound == {"one": "1", "two": "2"}


@pytest.mark.parametrize(
    "value",
    [
        {"image": ["1.jpg"], "caption": ["one", "two"]},
        {"image": {"0": "1.jpg"}, "caption": {"1": "one"}},
        {"image_urls": ["u1", "u2"], "captions": ["one", "two"]},
        {"columns": ["image", "caption"], "data": [["1.jpg", "one"]]},
    ],
)
def test_json_whose_columns_are_not_known_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"t\.json"):
        import_data("parquet", {"source": tmp_path / "t.json"}, tmp_path / "out")


@pytest.mark.parametrize("column", [None, pa.array(["http://x/1.jpg", "2.jpg"])])
def test_parquet_without_images_gives_its_captions(tmp_path: Path, column: Any) -> None:
    table = pa.table({"caption": ["one", "two"]} | ({} if column is None else {"image": column}))
    pq.write_table(table, tmp_path / "t.parquet")
    made = import_data("parquet", {"source": tmp_path / "t.parquet"}, tmp_path / "out")
    assert texts(made) == ["one", "two"]
    assert "images" not in made


def test_an_image_column_of_numbers_is_not_passed_over(tmp_path: Path) -> None:
    table = pa.table({"image": [[1, 2]], "caption": ["one"]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="bytes of an image"):
        import_data("parquet", {"source": tmp_path / "t.parquet"}, tmp_path / "out", ALL)


def test_images_in_a_dictionary_are_images(tmp_path: Path, make_picture: Make) -> None:
    images = pa.array([make_picture(1), make_picture(2), make_picture(1)]).dictionary_encode()
    table = pa.table({"image": images, "caption": ["one", "two", "one again"]})
    pq.write_table(table, tmp_path / "t.parquet")
    made = import_data("parquet", {"source": tmp_path / "t.parquet"}, tmp_path / "out")
    assert made["images"].counts["images"] == 2
    assert made["captions"].counts["captions"] == 3


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.xz", "t.jsonl"])
def test_packed_tables_are_named(tmp_path: Path, name: str, pack: Callable[..., bytes]) -> None:
    (tmp_path / name).write_bytes(pack(b"image,caption\n1.jpg,one\n"))
    with pytest.raises(DataError, match="packed by"):
        import_data("parquet", {"source": tmp_path / name}, tmp_path / "out")


def test_a_reason_is_not_as_long_as_an_image(tmp_path: Path, make_picture: Make) -> None:
    (tmp_path / "2.jpg").write_bytes(make_picture(1))
    rows = [{"image": "A" * 50_000, "caption": "one"}, {"image": "2.jpg", "caption": "two"}]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = {"source": tmp_path / "t.jsonl", "images": [tmp_path]}
    made = import_data("jsonl", options, tmp_path / "out", ALL)
    (reason,) = left_out(made["images"]).values()
    assert len(reason) < 500


def test_a_row_that_names_no_file_is_left_out_as_that(tmp_path: Path, make_picture: Make) -> None:
    (tmp_path / "1.jpg").write_bytes(make_picture(1))
    rows = [{"image": "1.jpg", "caption": "one"}, {"image": None, "caption": "two"}]
    rows += [{"image": "", "caption": "three"}, {"image": 7, "caption": "four"}]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = {"source": tmp_path / "t.jsonl", "images": [tmp_path]}
    made = import_data("jsonl", options, tmp_path / "out", ALL)
    assert left_out(made["images"]).keys() == {"row-1", "row-2", "row-3"}
    assert not any(":" in reason for reason in left_out(made["images"]).values())
    assert made["captions"].counts["captions"] == 4


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_compressed_shards_in_a_folder_are_read(
    tmp_path: Path, make_picture: Make, suffix: str
) -> None:
    path = tmp_path / f"0.tar.{suffix}"
    with tarfile.open(path, f"w:{suffix}") as tar:  # type: ignore[call-overload]
        add_member(tar, "a.jpg", make_picture(1))
        add_member(tar, "a.txt", b"one")
    assert texts(import_data("webdataset", {"source": [tmp_path]}, tmp_path / "out")) == ["one"]
