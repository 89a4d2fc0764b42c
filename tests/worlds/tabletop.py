"""Sets of the tabletop world in other people's formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from gmail_align.tabletop.world import write_coco


def write_karpathy(folder: Path, counts: Mapping[str, int]) -> Path:
    """Write images and captions as Karpathy's splits do; returns ``dataset_tabletop.json``."""
    entries = []
    for split, count in counts.items():
        coco = json.loads(write_coco(folder, split, count).read_text())
        for image in coco["images"]:
            own = [row for row in coco["annotations"] if row["image_id"] == image["id"]]
            sentences = [
                {"raw": row["caption"], "imgid": len(entries), "sentid": row["id"]} for row in own
            ]
            entry = {
                "filepath": "images",
                "filename": image["file_name"],
                "imgid": len(entries),
                "cocoid": image["id"],
                "split": split,
                "sentids": [row["id"] for row in own],
                "sentences": sentences,
            }
            entries.append(entry)
    path = folder / "dataset_tabletop.json"
    path.write_text(json.dumps({"dataset": "tabletop", "images": entries}))
    return path


def write_classes(folder: Path, names: list[str], each: int) -> Path:
    """Write a folder of images for each class, and one more file, ``classes.json``."""
    write_coco(folder / "coco", "train", len(names) * each)
    for number, path in enumerate(sorted((folder / "coco/images").iterdir())):
        own = folder / "train" / names[number % len(names)]
        own.mkdir(parents=True, exist_ok=True)
        shutil.move(path, own / path.name)
    (folder / "classes.json").write_text(json.dumps({"classes": names}))
    return folder / "train"
