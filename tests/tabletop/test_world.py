import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gmail_align.artifacts import read_jsonl
from gmail_align.data.images import ImageStore
from gmail_align.errors import DataError
from gmail_align.importing.run import import_data
from gmail_align.tabletop.scenes import Scene, sample_scene
from gmail_align.tabletop.text import captions
from gmail_align.tabletop.world import write_coco, write_scienceqa, write_talks


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


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="dev"):
        write_coco(tmp_path, "dev", 1)
    assert not list(tmp_path.iterdir())


def test_what_is_drawn_is_not_drawn_again_unless_its_size_differs(tmp_path):
    write_coco(tmp_path, "train", 3, size=32)
    before = files(tmp_path)
    kept, *others = sorted((tmp_path / "images").iterdir())
    os.utime(kept, ns=(0, 1))
    for other in others:
        other.write_bytes(other.read_bytes()[:3])
    write_coco(tmp_path, "train", 3, size=32)
    assert files(tmp_path) == before
    assert kept.stat().st_mtime_ns == 1
    write_coco(tmp_path, "train", 3, size=16)
    with Image.open(kept) as image:
        assert image.size == (16, 16)


def test_a_lost_worker_is_replaced(tmp_path):
    write_coco(tmp_path / "whole", "train", 130, size=16)
    code = f"""
import os, signal
from pathlib import Path
from gmail_align.tabletop import world
draw, lost = world.Picture.draw, Path({str(tmp_path)!r}) / "lost"
def killed(picture):
    if not lost.exists():
        lost.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    draw(picture)
world.Picture.draw = killed
"""
    script = tmp_path / "script.py"
    script.write_text(
        f"{code}\nif __name__ == '__main__':\n"
        f"    folder = Path({str(tmp_path / 'killed')!r})\n"
        "    world.write_coco(folder, 'train', 130, size=16, workers=2)\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "lost").exists()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_conversations_and_open_questions_are_about_the_drawn_images(tmp_path):
    path = write_coco(tmp_path, "test", 3, size=16)
    talks, questions = write_talks(tmp_path, "test", 3)
    options = {"annotations": path, "images": [tmp_path / "images"]}
    real = import_data("coco", options, tmp_path / "real")["images"]
    said = json.loads(talks.read_text())
    assert [talk["image"] for talk in said] == list(ImageStore(real).ids)
    for talk in said:
        values = [turn["value"] for turn in talk["conversations"]]
        assert values[0].startswith("<image>\n") and "<image>" not in "".join(values[1:])
        assert sum("Describe the image." in value for value in values) == 1
    asked = list(read_jsonl(questions))
    assert len(asked) == 6
    options = {"source": questions, "images": [tmp_path / "images"], "split": "test"}
    made = import_data("mmmu", options, tmp_path / "asked")
    assert made["questions"].counts["questions"] == made["images"].counts["images"] == 6
