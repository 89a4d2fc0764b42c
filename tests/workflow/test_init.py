"""From a folder of anyone's data to a recipe, and from that to a report."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from gmail_align import pipeline
from gmail_align.cli.main import app
from gmail_align.errors import DataError, UserError
from gmail_align.importing.run import import_data
from gmail_align.recipe import read_recipe
from gmail_align.workflow.init import Models, init_recipe
from gmail_align.workflow.layouts import find_layout

TABLETOP = Models("tabletop", "tabletop", "tabletop")


def picture(path: Path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 48)).save(path, quality=95)
    return path.name


def pictures(folder: Path, count: int, start: int = 0) -> list[str]:
    return [picture(folder / f"{k:03}.jpg", k) for k in range(start, start + count)]


def coco(folder: Path) -> None:
    for split, start in (("train", 0), ("val", 20)):
        names = pictures(folder / f"{split}2017", 20, start)
        images = [{"id": start + k, "file_name": name} for k, name in enumerate(names)]
        notes = [
            {"id": 100 * start + k, "image_id": start + k // 2, "caption": f"thing {k}"}
            for k in range(40)
        ]
        body = {"images": images, "annotations": notes}
        (folder / f"captions_{split}2017.json").write_text(json.dumps(body))


def karpathy(folder: Path) -> None:
    images = [
        {
            "filename": name,
            "split": ("train", "val", "test")[k % 3],
            "imgid": k,
            "sentids": [k],
            "sentences": [{"raw": f"thing {k}", "tokens": ["thing"], "imgid": k, "sentid": k}],
        }
        for k, name in enumerate(pictures(folder / "images", 30))
    ]
    (folder / "dataset.json").write_text(json.dumps({"dataset": "mine", "images": images}))


def hugging_face(folder: Path) -> None:
    rows = [{"file_name": name, "text": f"thing {name}"} for name in pictures(folder, 30)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def loose(folder: Path) -> None:
    for name in pictures(folder, 30):
        (folder / name).with_suffix(".txt").write_text(f"thing {name}")


def parquet(folder: Path) -> None:
    pictures(folder / "tmp", 30)
    files = sorted((folder / "tmp").iterdir())
    rows = {"image": [f.read_bytes() for f in files], "caption": [f"thing {f}" for f in files]}
    pq.write_table(pa.table(rows), folder / "train-00000.parquet")
    for file in files:
        file.unlink()


def shards(folder: Path) -> None:
    loose(folder)
    with tarfile.open(folder / "000.tar", "w") as tar:
        for file in sorted(folder.glob("0*.*")):
            if file.suffix != ".tar":
                tar.add(file, file.name)
                file.unlink()


def classes(folder: Path) -> None:
    for at, name in enumerate(("dog", "red_cat")):
        pictures(folder / name, 15, 100 * at)


LAYOUTS = {
    "coco": coco,
    "karpathy": karpathy,
    "imagefolder": loose,
    "parquet": parquet,
    "webdataset": shards,
    "folder": classes,
}


def write(folder: Path, kind: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kind(folder)
    return folder


@pytest.mark.parametrize("importer", LAYOUTS)
def test_layouts_are_known(importer: str, tmp_path: Path) -> None:
    layout = find_layout(write(tmp_path / "data", LAYOUTS[importer]))
    assert layout.data["train"]["import"] == importer
    assert sum(layout.images.values()) in (30, 40)
    assert set(layout.data) == {"train", "validation", "test"}


def test_a_table_among_images_is_known(tmp_path: Path) -> None:
    assert "metadata.jsonl" in find_layout(write(tmp_path / "data", hugging_face)).kind


@pytest.mark.parametrize("importer", LAYOUTS)
def test_what_init_writes_can_be_planned(importer: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", LAYOUTS[importer])
    made = init_recipe(data, tmp_path / "mine.toml", TABLETOP)
    recipe = read_recipe(str(made.path))
    assert recipe.data["train"].importer == importer
    plan = pipeline.plan(str(made.path), tmp_path / "work")
    assert all(cost["amount"] for cost in plan["costs"])
    assert not [need for need in plan["needs"] if "data" in need["what"]]


def tables(folder: Path, *splits: str) -> None:
    for at, split in enumerate(splits):
        rows = [f"{name},thing {name}" for name in pictures(folder / "images", 4, 4 * at)]
        (folder / f"{split}.csv").write_text("\n".join(["file_name,caption", *rows]))


def test_files_of_a_split_are_a_set_of_their_own(tmp_path: Path) -> None:
    tables(tmp_path / "csv", "test", "train", "dev", "other")
    layout = find_layout(tmp_path / "csv")
    assert [Path(one).name for one in layout.data["train"]["source"]] == ["train.csv"]
    assert [Path(one).name for one in layout.data["test"]["source"]] == ["test.csv"]
    assert [Path(one).name for one in layout.data["validation"]["source"]] == ["dev.csv"]
    assert len(layout.left_out) == 1 and layout.images == dict.fromkeys(layout.data, 4)
    for split in ("train", "eval"):
        write(tmp_path / f"tars/{split}", shards)
    layout = find_layout(tmp_path / "tars")
    assert len(layout.data["train"]["source"]) == len(layout.data["test"]["source"]) == 1
    for split in ("train", "dev"):
        write(tmp_path / f"loose/{split}", loose)
    assert find_layout(tmp_path / "loose").data["test"]["split"] == "dev"


def test_what_is_damaged_in_a_folder_is_named(tmp_path: Path) -> None:
    for name, data in (("a.parquet", b"PAR1"), ("a.tar", b"x" * 600), ("a.zip", b"PK\3\4")):
        own = tmp_path / name[2:]
        own.mkdir()
        (own / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            find_layout(own)
    for entry in (3, {"sentences": 4}, {"sentences": None}):
        images = [{"sentences": [], "split": "train"}, entry]
        (tmp_path / "a.json").write_text(json.dumps({"images": images}))
        with pytest.raises(DataError, match=r"a\.json"):
            find_layout(tmp_path / "a.json")


def test_names_of_files_never_become_lines_of_the_recipe(tmp_path: Path) -> None:
    for name in ('dog\n[learn.evil]\nkind = "probe"', "cat\x7f"):
        pictures(tmp_path / "data" / name, 15)
    made = init_recipe(tmp_path / "data", tmp_path / "mine.toml", TABLETOP)
    assert "evil" not in read_recipe(str(made.path)).learn


def test_an_empty_folder_and_an_existing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class folders"):
        init_recipe(tmp_path, tmp_path / "mine.toml")
    with pytest.raises(DataError, match="no folder"):
        init_recipe(tmp_path / "nothing", tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(UserError, match="exists already"):
        init_recipe(write(tmp_path / "data", loose), tmp_path / "mine.toml")


def test_what_is_too_little_for_a_recipe_is_refused(tmp_path: Path) -> None:
    names = pictures(tmp_path / "data", 4)
    for name in names:
        (tmp_path / "data" / name).with_suffix(".txt").write_text("a thing")
    with pytest.raises(DataError, match="too few images"):
        init_recipe(tmp_path / "data", tmp_path / "mine.toml", TABLETOP)
    write(tmp_path, classes)
    (tmp_path / "notes.txt").write_text("class folders lie around this file")
    with pytest.raises(DataError, match="notes"):
        init_recipe(tmp_path / "notes.txt", tmp_path / "mine.toml", TABLETOP)


def test_generated_images_are_known_by_their_name(tmp_path: Path) -> None:
    for kind, start in (("real", 0), ("fake", 500)):
        with zipfile.ZipFile(tmp_path / f"train_{kind}.zip", "w") as archive:
            for at, name in enumerate(("dog", "cat")):
                for k in range(12):
                    seed = start + 100 * at + k
                    file = tmp_path / "tmp" / f"{seed}.jpg"
                    picture(file, seed)
                    archive.write(file, f"{name}/{seed}.jpg")
                    file.unlink()
    (tmp_path / "tmp").rmdir()
    layout = find_layout(tmp_path)
    assert layout.classes == 2 and layout.generated is not None
    assert layout.generated["source"] == [str(tmp_path / "train_fake.zip")]
    made = init_recipe(tmp_path, tmp_path / "mine.toml", TABLETOP)
    result = pipeline.run(str(made.path), tmp_path / "work", ["align.gmail.optim.steps=4"])
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["raw"]["metrics"].keys() >= {"accuracy"}
    assert rows["raw"]["real_images"] == 0 < rows["real"]["real_images"]
    assert {claim["verdict"] for claim in result["claims"]} <= {
        "holds",
        "not significant",
        "reversed",
    }


def test_captions_of_an_image_are_counted(tmp_path: Path) -> None:
    names = pictures(tmp_path / "table", 20)
    rows = [f"{name},thing {name} {k}" for name in names for k in range(3)]
    (tmp_path / "table" / "captions.csv").write_text("\n".join(["file_name,caption", *rows]))
    for folder in (tmp_path / "table", several_lines(tmp_path / "texts")):
        made = init_recipe(folder, tmp_path / f"{folder.name}.toml", TABLETOP)
        train = read_recipe(str(made.path)).data["train"]
        assert train.captions_per_image == 1 and not train.expect
        assert train.about["captions"] in (2 * train.about["images"], 3 * train.about["images"])


def several_lines(folder: Path) -> Path:
    for text in write(folder, loose).glob("*.txt"):
        text.write_text(f"{text.read_text()}\n\nanother {text.stem}\n")
    return folder


def test_captions_run_from_the_folder_to_the_report(tmp_path: Path) -> None:
    data = several_lines(tmp_path / "data")
    out = tmp_path / "mine.toml"
    words = ["init", str(data), "--out", str(out), "--generator", "tabletop"]
    assert CliRunner().invoke(app, words).exit_code == 0
    fast = ["learn.clipcap.optim.steps=4", "learn.clipcap.optim.evaluate_every=4"]
    fast += [f"align.{name}.optim.steps=2" for name in ("gmail", "control")]
    fast += ["generator.steps=1", "learn.clipcap.beam=1"]
    result = pipeline.run(str(out), tmp_path / "work", fast)
    assert result["rows"][0]["name"] == "raw"
    assert all(row["metrics"]["CIDEr"]["n"] == 3 for row in result["rows"])
    assert Path(result["report"]).exists()


@pytest.mark.parametrize("packed", [True, False])
def test_places_named_by_a_split_are_sets_of_their_own(tmp_path: Path, packed: bool) -> None:
    home = tmp_path / "in"
    for start, place in enumerate(("train_real", "test_real", "train_fake", "test_fake")):
        for label in ("cat", "dog"):
            pictures(home / place / label, 6, 6 * start)
        if packed:
            shutil.make_archive(str(home / place), "zip", home / place)
            shutil.rmtree(home / place)
    layout = find_layout(home)
    sources = {name: table["source"] for name, table in layout.imports().items()}
    end = ".zip" if packed else ""
    assert sources == {
        "train": [str(home / f"train_real{end}")],
        "test": [str(home / f"test_real{end}")],
        "generated": [str(home / f"train_fake{end}")],
    }
    assert any("test_fake" in told for told in layout.left_out)
    init_recipe(home, tmp_path / "mine.toml")
    assert read_recipe(str(tmp_path / "mine.toml")).align["gmail"].holdout == 0.2


@pytest.mark.parametrize("order", ["{split}/{label}", "set/{label}/{split}"])
def test_class_folders_of_several_splits_are_sets_of_their_own(tmp_path: Path, order: str) -> None:
    for start, (split, label) in enumerate(
        (split, label) for split in ("Train", "VALID") for label in ("cat", "dog")
    ):
        pictures(tmp_path / "in" / order.format(split=split, label=label), 2, 2 * start)
    layout = find_layout(tmp_path / "in")
    assert layout.imports().keys() == {"train", "test"}
    assert (layout.classes, layout.images["train"]) == (2, 4)
    result = CliRunner().invoke(app, ["import", str(tmp_path / "in"), "--out", str(tmp_path / "o")])
    assert result.exit_code == 0, result.output
    for name in ("train", "test"):
        labels = json.loads((tmp_path / "o" / name / "classes/labels.json").read_text())
        assert sorted(labels.values()) == ["cat", "cat", "dog", "dog"]


def test_an_archive_in_a_folder_that_holds_nothing_else_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("notes.md", "none")
    with pytest.raises(DataError, match=r"photos\.zip"):
        find_layout(tmp_path)


@pytest.mark.parametrize("home", [".", "images"])
def test_images_in_folders_of_their_splits_are_found(tmp_path: Path, home: str) -> None:
    for number, split in enumerate(("train", "val")):
        names = pictures(tmp_path / "d" / home / f"{split}2017", 5)  # both have the same names
        for name in names:
            picture(tmp_path / "d" / home / f"{split}2017" / name, 100 * number + int(name[:3]))
        body = {
            "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
            "annotations": [{"id": k, "image_id": k, "caption": split} for k in range(5)],
        }
        (tmp_path / "d/annotations").mkdir(exist_ok=True)
        (tmp_path / f"d/annotations/captions_{split}2017.json").write_text(json.dumps(body))
    layout = find_layout(tmp_path / "d")
    for split, options in zip(("train", "test"), ("train2017", "val2017"), strict=True):
        assert [Path(one).name for one in layout.data[split]["images"]] == [options]
    for importer, options, out in layout.import_calls(tmp_path / "out"):
        assert import_data(importer, options, out)["images"].counts["images"] == 5


def test_files_that_a_layout_does_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    table = pa.table({"image": [b"1"], "caption": ["one"]})
    pq.write_table(table, tmp_path / "d/t.parquet")
    pictures(tmp_path / "d", 2)
    (tmp_path / "d/more.csv").write_text("image,caption\n000.jpg,one\n")
    (tmp_path / "d/README.md").write_text("About.")
    assert find_layout(tmp_path / "d").left_out == [
        "Files that this does not read: 1 .csv, 2 .jpg."
    ]


def test_a_pipe_among_texts_is_not_waited_for(tmp_path: Path) -> None:
    pictures(tmp_path / "d", 4)
    for k in range(3):
        (tmp_path / f"d/00{k}.txt").write_text("one\n\ntwo\n")
    os.mkfifo(tmp_path / "d/003.txt")
    assert find_layout(tmp_path / "d").captions["train"] == 6


@pytest.mark.parametrize("inner", [".", "train"])
def test_arrow_files_are_named(tmp_path: Path, inner: str) -> None:
    (tmp_path / "d" / inner).mkdir(parents=True, exist_ok=True)
    (tmp_path / "d" / inner / "data-00000-of-00001.arrow").write_bytes(b"arrow")
    with pytest.raises(DataError, match="to_parquet"):
        find_layout(tmp_path / "d")
    with pytest.raises(DataError, match="to_parquet"):
        import_data("parquet", {"source": [tmp_path / "d"]}, tmp_path / "out")
