"""Writers of the tabletop world as COCO, Karpathy's splits, ScienceQA and class folders."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import count as count_from
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from PIL import Image

from gmail_align.artifacts import write_bytes
from gmail_align.errors import DataError
from gmail_align.tabletop.render import render
from gmail_align.tabletop.scenes import SPLITS, Scene, sample_scene
from gmail_align.tabletop.text import (
    captions,
    class_label,
    class_prompts,
    class_sets,
    long_caption,
    questions,
)

_ID_SPACE: Final = 10_000_000
"""Seeds of one split; image ids of different splits never meet."""
_CAPTIONS: Final = 5

Job = tuple[Scene, int, str]


def image_id(split: str, seed: int) -> int:
    """Return the number that names an image in every layout.

    Raises:
        DataError: If the split is unknown or the seed is out of range.
    """
    if split not in SPLITS or not 0 <= seed < _ID_SPACE:
        raise DataError(f"no image {seed} in split {split!r}; splits are {', '.join(SPLITS)}")
    return SPLITS.index(split) * _ID_SPACE + seed


def write_coco(
    folder: Path, split: str, count: int, start: int = 0, size: int = 64, workers: int = 1
) -> Path:
    """Write images, captions and ground truth as COCO does and return the captions' path.

    The folder gets ``images/*.jpg``, ``captions_{split}.json`` (COCO's captions format) and
    ``scenes_{split}.json`` (image id to scene, long caption).

    Args:
        folder: Where to write; other splits may already be there.
        split: One of ``scenes.SPLITS``.
        count: Number of images.
        start: Seed of the first.
        size: Pixels along a side.
        workers: Processes that draw.
    """
    scenes = {
        image_id(split, seed): sample_scene(seed, split) for seed in range(start, start + count)
    }
    names = {number: _name(split, number) for number in scenes}
    _write_images(
        [(scene, size, str(folder / "images" / names[k])) for k, scene in scenes.items()], workers
    )
    images = [{"id": k, "file_name": names[k], "width": size, "height": size} for k in scenes]
    annotations = [
        {"id": number * _CAPTIONS + k, "image_id": number, "caption": caption}
        for number, scene in scenes.items()
        for k, caption in enumerate(captions(scene, _CAPTIONS))
    ]
    info = {"description": "Tabletop world", "version": "1.0"}
    path = folder / f"captions_{split}.json"
    _write_json(path, {"info": info, "licenses": [], "images": images, "annotations": annotations})
    truth = {
        str(number): {"scene": scene.to_dict(), "long_caption": long_caption(scene)}
        for number, scene in scenes.items()
    }
    _write_json(folder / f"scenes_{split}.json", truth)
    return path


def write_karpathy(
    folder: Path, counts: Mapping[str, int], size: int = 64, workers: int = 1
) -> Path:
    """Write images and Karpathy's format, ``dataset_tabletop.json``, and return its path.

    Args:
        folder: Where to write; images go to ``images/``.
        counts: Number of images of each split.
        size: Pixels along a side.
        workers: Processes that draw.
    """
    entries: list[dict[str, Any]] = []
    jobs: list[Job] = []
    for split, count in counts.items():
        for seed in range(count):
            number, scene = image_id(split, seed), sample_scene(seed, split)
            jobs.append((scene, size, str(folder / "images" / _name(split, number))))
            entries.append(_karpathy_entry(len(entries), split, number, scene))
    _write_images(jobs, workers)
    path = folder / "dataset_tabletop.json"
    _write_json(path, {"dataset": "tabletop", "images": entries})
    return path


def _karpathy_entry(position: int, split: str, number: int, scene: Scene) -> dict[str, Any]:
    """Return one image's record with its sentences and their tokens."""
    identifiers = [position * _CAPTIONS + k for k in range(_CAPTIONS)]
    sentences = [
        {"raw": caption, "tokens": _tokens(caption), "imgid": position, "sentid": identifier}
        for identifier, caption in zip(identifiers, captions(scene, _CAPTIONS), strict=True)
    ]
    return {
        "filepath": "images",
        "filename": _name(split, number),
        "imgid": position,
        "cocoid": number,
        "split": split,
        "sentids": identifiers,
        "sentences": sentences,
    }


def _tokens(caption: str) -> list[str]:
    """Return a caption's words in lower case without punctuation."""
    return caption.lower().replace(",", "").rstrip(".").split()


def write_scienceqa(
    folder: Path, counts: Mapping[str, int], size: int = 64, workers: int = 1
) -> Path:
    """Write questions with images as ScienceQA does and return the path of ``problems.json``.

    The folder gets ``problems.json``, ``pid_splits.json`` and ``images/<split>/<id>/image.png``.
    Each problem has an image of its own and one of the questions that its scene answers.

    Args:
        folder: Where to write.
        counts: Number of problems of each split.
        size: Pixels along a side.
        workers: Processes that draw.
    """
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    jobs: list[Job] = []
    for split, count in counts.items():
        splits[split] = []
        for seed in range(count):
            identifier, scene = str(image_id(split, seed)), sample_scene(seed, split)
            problems[identifier] = _problem(split, scene)
            splits[split].append(identifier)
            jobs.append((scene, size, str(folder / "images" / split / identifier / "image.png")))
    if {"train", "val"} <= splits.keys():
        splits["trainval"] = splits["train"] + splits["val"]
    _write_images(jobs, workers)
    path = folder / "problems.json"
    _write_json(path, problems)
    _write_json(folder / "pid_splits.json", splits)
    return path


def _problem(split: str, scene: Scene) -> dict[str, Any]:
    """Return one problem: a subject drawn evenly from those offered, then one of its questions."""
    rng = random.Random(f"problem:{scene.noise_seed}")
    offered = questions(scene)
    subject = rng.choice(sorted({question.subject for question in offered}))
    question = rng.choice([question for question in offered if question.subject == subject])
    return {
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade1",
        "subject": "natural science",
        "topic": "tabletop",
        "category": subject,
        "skill": f"Tell the {subject} from a picture",
        "lecture": "",
        "solution": long_caption(scene),
        "split": split,
    }


def write_class_folders(
    folder: Path, set_name: str, split: str, count: int, size: int = 64, workers: int = 1
) -> Path:
    """Write one folder of images a class, evenly filled, and return the split's folder.

    Images go to ``<folder>/<split>/<class>/*.jpg`` with spaces of class names as underscores;
    ``<folder>/classes.json`` maps each class folder to its name and prompts, in the set's order.

    Args:
        folder: Where to write.
        set_name: One of ``class_sets()``.
        split: One of ``scenes.SPLITS``.
        count: Number of images over all classes.
        size: Pixels along a side.
        workers: Processes that draw.

    Raises:
        DataError: If the class set or the split is unknown.
    """
    sets = class_sets()
    if set_name not in sets:
        raise DataError(f"unknown class set {set_name!r}; choose one of {', '.join(sets)}")
    classes = sets[set_name]
    folders = [name.replace(" ", "_") for name in classes]
    wanted = [count // len(classes) + (k < count % len(classes)) for k in range(len(classes))]
    jobs: list[Job] = []
    for seed in count_from():
        if not any(wanted):
            break
        number, scene = image_id(split, seed), sample_scene(seed, split)
        label = class_label(scene, set_name)
        if label is not None and wanted[label]:
            wanted[label] -= 1
            jobs.append((scene, size, str(folder / split / folders[label] / _name(split, number))))
    _write_images(jobs, workers)
    record = {
        made: {"name": name, "prompts": class_prompts(set_name, name)}
        for made, name in zip(folders, classes, strict=True)
    }
    _write_json(folder / "classes.json", {"set": set_name, "classes": record})
    return folder / split


def _name(split: str, number: int) -> str:
    """Return an image's file name."""
    return f"tabletop_{split}_{number:012d}.jpg"


def _write_images(jobs: list[Job], workers: int) -> None:
    """Draw and save every image, in this process or in several."""
    for parent in sorted({os.path.dirname(path) for _, _, path in jobs}):
        os.makedirs(parent, exist_ok=True)
    if workers <= 1:
        for job in jobs:
            _write_image(job)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_write_image, jobs, chunksize=64):
            pass


def _write_image(job: Job) -> None:
    """Draw one image and save it: PNG, or JPEG of quality 95 without chroma subsampling."""
    scene, size, path = job
    buffer = io.BytesIO()
    image = Image.fromarray(render(scene, size))
    if path.endswith(".png"):
        image.save(buffer, format="PNG")
    else:
        image.save(buffer, format="JPEG", quality=95, subsampling=0)
    with _replacing(path) as partial, open(partial, "wb") as file:
        file.write(buffer.getvalue())


@contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Give a temporary name beside ``path`` that becomes ``path`` when the block succeeds."""
    partial = f"{path}.{os.getpid()}.part"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def _write_json(path: Path, value: Any) -> None:
    """Write a value as compact JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(value, ensure_ascii=False).encode())
