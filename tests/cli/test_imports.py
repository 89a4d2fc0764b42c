"""The import commands and the leak guard, as a user calls them."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gmail_align.artifacts import load
from gmail_align.cli.main import app
from gmail_align.tabletop.world import write_scienceqa
from worlds.tabletop import write_classes, write_karpathy


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tabletop sets in the formats of Karpathy, class folders and ScienceQA, one of them zipped."""
    work = tmp_path_factory.mktemp("imports")
    write_karpathy(work / "karpathy", {"train": 6, "test": 3})
    write_classes(work / "classes", ["grass", "sand", "tiles", "wooden_table"], 2)
    write_scienceqa(work / "scienceqa", {"test": 4})
    with zipfile.ZipFile(work / "images.zip", "w") as file:
        for path in sorted((work / "karpathy/images").iterdir()):
            file.write(path, f"images/{path.name}")
    return work


def karpathy(world, out, split, *more):
    annotations = world / "karpathy/dataset_tabletop.json"
    words = ["--annotations", annotations, "--images", world / "images.zip", "--split", split]
    return call("import", "karpathy", *words, "--out", out, *more)


def test_karpathy_from_a_zip(world, tmp_path):
    ran = karpathy(world, tmp_path / "out", "train", "--json")
    assert ran.exit_code == 0, ran.stderr
    made = json.loads(ran.stdout)["artifacts"]
    assert [one["kind"] for one in made] == ["captions", "images"]
    assert made[0]["counts"] == {"captions": 30, "images": 6}
    again = karpathy(world, tmp_path / "out", "train", "--json")
    assert (again.stdout, again.stderr) == (ran.stdout, "")


def test_a_finished_import_reads_nothing_again(world, tmp_path, monkeypatch):
    source = tmp_path / "classes"
    shutil.copytree(world / "classes/train", source)
    words = ["import", "folder", "--source", source, "--out", tmp_path / "o", "--json"]
    first = call(*words)
    assert first.exit_code == 0, first.stderr
    with monkeypatch.context() as patched:
        patched.setattr("gmail_align.importing.run.write_import", None)
        assert call(*words).stdout == first.stdout
    assert "belongs to another run" in call(*words, "--template", "a {}.").stderr
    image = next(source.rglob("*.png"), None) or next(source.rglob("*.jpg"))
    os.utime(image, ns=(0, 1))
    monkeypatch.setattr("gmail_align.importing.run.write_import", None)
    assert call(*words).exit_code == 1  # it is read again
    os.utime(image, ns=(0, image.stat().st_mtime_ns))
    image.write_bytes(image.read_bytes() + b" ")
    assert call(*words).exit_code == 1


def test_what_is_missing_of_a_finished_import_is_made_again(world, tmp_path):
    first = karpathy(world, tmp_path / "out", "train", "--json")
    shutil.rmtree(tmp_path / "out/captions")
    assert karpathy(world, tmp_path / "out", "train", "--json").stdout == first.stdout
    (tmp_path / "out/import.json").write_text("{")
    assert karpathy(world, tmp_path / "out", "train", "--json").stdout == first.stdout


@pytest.mark.parametrize("again", [0, 1])
def test_options_of_a_finished_import_are_not_ignored(world, tmp_path, again):
    words = ["import", "scienceqa", "--source", world / "scienceqa", "--out", tmp_path / "a"]
    assert call(*words, *["--with-image"] * again).exit_code == 0
    ran = call(*words, *["--with-image"] * (1 - again))
    assert ran.exit_code == 2
    assert "belongs to another run" in ran.stderr


def test_class_folders_give_labels_that_zero_shot_reads(world, tmp_path):
    ran = call("import", "folder", "--source", world / "classes/train", "--out", tmp_path / "o")
    assert ran.exit_code == 0, ran.stderr
    labels = json.loads((tmp_path / "o/classes/labels.json").read_text())
    classes = json.loads((tmp_path / "o/classes/classes.json").read_text())
    assert len(labels) == 8
    assert set(labels.values()) == set(classes)
    assert load(tmp_path / "o/classes").counts == {"images": 8, "classes": 4}


def test_scienceqa_and_its_protocol(world, tmp_path):
    words = ["import", "scienceqa", "--source", world / "scienceqa"]
    ran = call(*words, "--out", tmp_path / "a", "--json")
    assert ran.exit_code == 0, ran.stderr
    kinds = [one["kind"] for one in json.loads(ran.stdout)["artifacts"]]
    assert kinds == ["images", "questions"]
    words += ["--protocol", "scienceqa_img_test", "--out", tmp_path / "b"]
    ran = call(*words)
    assert ran.exit_code == 2
    assert "has 2017 questions, but here are 4 questions" in ran.stderr
    assert "or declare --subset" in ran.stderr
    assert call(*words, "--subset").exit_code == 0


def test_the_leak_guard_stops_or_drops(world, tmp_path):
    for split in ("train", "test"):
        assert karpathy(world, tmp_path / split, split).exit_code == 0
    assert karpathy(world, tmp_path / "both", "train", "--split", "test").exit_code == 0
    test = ["--evaluation", tmp_path / "test/images"]
    ran = call("leaks", "--train", tmp_path / "train/images", *test, "--json")
    assert ran.exit_code == 0, ran.stderr
    assert json.loads(ran.stdout)["leaking"] == 0
    words = ["leaks", "--train", tmp_path / "both/images", *test]
    ran = call(*words, "--json")
    assert ran.exit_code == 2
    assert json.loads(ran.stdout)["leaking"] == 3
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("gmail-align: ")]
    assert "3 of 9 training images" in line
    assert "drop them with gmail-align leaks --drop" in line
    ran = call(*words, "--drop", tmp_path / "kept")
    assert ran.exit_code == 0, ran.stderr
    assert load(tmp_path / "kept").counts["images"] == 6
    assert call(*words, "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["karpathy", "--annotations", "{w}/none.json"], "there is no annotation file at"),
        (["coco", "--annotations", "{w}/karpathy/dataset_tabletop.json"], "'id'"),
        (
            ["coco", "--annotations", "x", "--protocol", "dtd"],
            "dtd is a protocol of dtd: import that data set",
        ),
        (
            ["coco", "--annotations", "x", "--protocol", "coco_val"],
            "did you mean 'coco_val2017_5k'?",
        ),
        (["cifake", "--source", "{w}"], "--generated"),
        (["classification", "dtd", "--source", "{w}"], "labels/test1.txt"),
        (["classification", "cifar", "--source", "{w}"], "no class set is named 'cifar'"),
        (["webdataset", "--source", "{w}/classes"], "does not hold a file that ends in .tar"),
        (["parquet", "--source", "{w}/images.zip"], "images.zip is a zip archive"),
        (["folder", "--source", "{w}/nowhere"], "there is no folder, zip or tar at"),
        (["folder", "--source", "{w}/classes/classes.json"], "neither a folder nor a zip nor a"),
        (["mmmu", "--source", "{w}/classes"], "validation"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(world, tmp_path, words, sentence):
    ran = call("import", *(word.format(w=world) for word in words), "--out", tmp_path / "out")
    assert ran.exit_code == 2, (ran.stdout, ran.stderr, ran.exception)
    (line,) = ran.stderr.splitlines()
    assert line.startswith("gmail-align: ")
    assert sentence in line
    assert not Path(tmp_path / "out").exists() or not list(
        (tmp_path / "out").rglob("manifest.json")
    )


def test_a_dry_run_makes_nothing(world, tmp_path):
    ran = karpathy(world, tmp_path / "out", "train", "--dry-run", "--json")
    assert json.loads(ran.stdout)["split"] == ["train"]
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_recognised_and_imported_split_by_split(world, tmp_path):
    ran = call("import", world / "karpathy", "--out", tmp_path / "mine", "--json")
    assert ran.exit_code == 0, ran.stderr
    assert "Karpathy's json: train, test" in ran.stderr
    same = karpathy(world, tmp_path / "same", "train", "--json")
    assert json.loads(ran.stdout)["artifacts"][0]["counts"] == {"captions": 30, "images": 6}
    assert same.exit_code == 0
    assert load(tmp_path / "mine/test/images").counts["images"] == 3


@pytest.mark.parametrize(
    ("name", "line"),
    [("photos.csv", "{0},{1}"), ("photos.jsonl", '{{"image":"{0}","text":"{1}"}}')],
)
def test_a_table_is_recognised_by_its_columns(world, tmp_path, name, line):
    images = world / "karpathy/images"
    rows = [line.format(path.name, f"thing {n}") for n, path in enumerate(sorted(images.iterdir()))]
    table = images / name
    table.write_text("\n".join((["image,caption"] if name.endswith("csv") else []) + rows))
    try:
        ran = call("import", table, "--out", tmp_path / "mine", "--json")
        named = call(
            *("import", table.suffix[1:], "--source", table, "--images", images),
            *("--caption-column", "caption" if name.endswith("csv") else "text"),
            *("--out", tmp_path / "named", "--json"),
        )
    finally:
        table.unlink()
    assert (ran.exit_code, named.exit_code) == (0, 0), ran.stderr + named.stderr
    assert load(tmp_path / "mine/images").fingerprint == load(tmp_path / "named/images").fingerprint


def test_a_path_that_holds_nothing_known(tmp_path):
    (tmp_path / "notes.md").write_text("nothing")
    ran = call("import", tmp_path, "--out", tmp_path / "out")
    assert ran.exit_code == 2
    assert "nothing that is known" in ran.stderr


def test_a_table_beside_a_packed_folder_and_a_limit(world, tmp_path):
    home = tmp_path / "mine"
    home.mkdir()
    shutil.copy(world / "images.zip", home)
    name = sorted(path.name for path in (world / "karpathy/images").iterdir())[0]
    (home / "pairs.csv").write_text(f"image,caption\n{name},a cup\ngone.jpg,a plate\n")
    refused = call("import", home, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "limit_quarantine" in refused.stderr
    ran = call("import", home, "--out", tmp_path / "out", "--limit-quarantine", "0.5", "--json")
    assert ran.exit_code == 0, ran.stderr
    made = {one["kind"]: one["counts"] for one in json.loads(ran.stdout)["artifacts"]}
    assert made["images"]["images"] == 1
