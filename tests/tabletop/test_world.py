import json
from pathlib import Path

import pytest
from PIL import Image

from gmail_align.errors import DataError
from gmail_align.tabletop.scenes import Scene, sample_scene
from gmail_align.tabletop.text import captions, class_label, class_sets
from gmail_align.tabletop.world import (
    write_class_folders,
    write_coco,
    write_karpathy,
    write_scienceqa,
)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_coco(tmp_path):
    path = write_coco(tmp_path, "val", 4, start=3)
    record = json.loads(path.read_text())
    assert path.name == "captions_val.json"
    assert record.keys() == {"info", "licenses", "images", "annotations"}
    assert len(record["images"]) == 4 and len(record["annotations"]) == 20
    assert len({a["id"] for a in record["annotations"]}) == 20
    truth = json.loads((tmp_path / "scenes_val.json").read_text())
    for k, entry in enumerate(record["images"]):
        with Image.open(tmp_path / "images" / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"]) == (64, 64)
            assert image.format == "JPEG"
        scene = Scene.from_dict(truth[str(entry["id"])]["scene"])
        assert scene == sample_scene(3 + k, "val")
        own = [a["caption"] for a in record["annotations"] if a["image_id"] == entry["id"]]
        assert own == captions(scene)


def test_coco_is_deterministic_with_any_number_of_workers(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        write_coco(tmp_path / name, "train", 3, workers=workers)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(files(tmp_path / "one")) == 5


def test_splits_share_a_folder_without_clashes(tmp_path):
    for split in ("train", "test"):
        write_coco(tmp_path, split, 3, size=32)
    assert len(list((tmp_path / "images").iterdir())) == 6
    numbers = [
        entry["id"]
        for split in ("train", "test")
        for entry in json.loads((tmp_path / f"captions_{split}.json").read_text())["images"]
    ]
    assert len(set(numbers)) == 6


def test_karpathy(tmp_path):
    record = json.loads(write_karpathy(tmp_path, {"train": 3, "test": 2}, size=32).read_text())
    assert [entry["split"] for entry in record["images"]] == ["train"] * 3 + ["test"] * 2
    identifiers = [i for entry in record["images"] for i in entry["sentids"]]
    assert identifiers == list(range(25))
    for position, entry in enumerate(record["images"]):
        assert (tmp_path / entry["filepath"] / entry["filename"]).is_file()
        assert entry["imgid"] == position
        assert [s["sentid"] for s in entry["sentences"]] == entry["sentids"]
        for sentence in entry["sentences"]:
            assert " ".join(sentence["tokens"]) == sentence["raw"].lower().replace(",", "").rstrip(
                "."
            )


def test_scienceqa(tmp_path):
    path = write_scienceqa(tmp_path, {"train": 4, "val": 2, "test": 2}, size=32)
    problems = json.loads(path.read_text())
    splits = json.loads((tmp_path / "pid_splits.json").read_text())
    assert {name: len(ids) for name, ids in splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
        "trainval": 6,
    }
    for split in ("train", "val", "test"):
        for identifier in splits[split]:
            problem = problems[identifier]
            assert problem["split"] == split and 0 <= problem["answer"] < len(problem["choices"])
            with Image.open(tmp_path / "images" / split / identifier / problem["image"]) as image:
                assert image.format == "PNG" and image.size == (32, 32)


@pytest.mark.parametrize("set_name", list(class_sets()))
def test_class_folders(tmp_path, set_name):
    folder = write_class_folders(tmp_path, set_name, "val", 9, size=32)
    record = json.loads((tmp_path / "classes.json").read_text())
    names = class_sets()[set_name]
    assert [entry["name"] for entry in record["classes"].values()] == names
    counts = []
    for label, name in enumerate(record["classes"]):
        made = list((folder / name).glob("*.jpg"))
        counts.append(len(made))
        for path in made:
            seed = int(path.stem.rsplit("_", 1)[1]) % 10_000_000
            assert class_label(sample_scene(seed, "val"), set_name) == label
    assert sum(counts) == 9 and max(counts) - min(counts) <= 1


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="weight"):
        write_class_folders(tmp_path, "weight", "val", 1)
    with pytest.raises(DataError):
        write_coco(tmp_path, "dev", 1)
    assert not list(tmp_path.iterdir())
