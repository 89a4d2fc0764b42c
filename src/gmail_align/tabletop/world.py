"""Writers of the tabletop world: captions as COCO stores them, questions as ScienceQA does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from gmail_align.artifacts import write_bytes, write_jsonl
from gmail_align.data.questions import ANSWER_BY_PHRASE
from gmail_align.engine import Engine, Job, run_shards
from gmail_align.errors import DataError
from gmail_align.tabletop.conversations import asked_of
from gmail_align.tabletop.questions import Question, questions
from gmail_align.tabletop.render import render
from gmail_align.tabletop.scenes import SPLITS, Scene, sample_scene
from gmail_align.tabletop.text import captions, long_caption

_ID_SPACE: Final = 10_000_000
"""Seeds of one split; image ids of different splits never meet."""
_CAPTIONS: Final = 5
_SHARD: Final = 64


@dataclass(frozen=True)
class Picture:
    """One image to draw: its scene, its path and its size in pixels along a side."""

    scene: Scene
    path: Path
    size: int

    def draw(self) -> None:
        """Draw it: PNG, or JPEG of quality 95 without chroma subsampling."""
        buffer = BytesIO()
        image = Image.fromarray(render(self.scene, self.size))
        if self.path.suffix == ".png":
            image.save(buffer, format="PNG")
        else:
            image.save(buffer, format="JPEG", quality=95, subsampling=0)
        write_bytes(self.path, buffer.getvalue())

    def drawn(self) -> bool:
        """Tell whether it is on disk, in this size."""
        try:
            with Image.open(self.path) as image:
                return image.size == (self.size, self.size)
        except OSError:
            return False


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
    ``scenes_{split}.json`` (image id to scene, long caption). Images that are there already are
    not drawn again.

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
    names = {number: _file_name(split, number) for number in scenes}
    _draw(
        [Picture(scene, folder / "images" / names[k], size) for k, scene in scenes.items()], workers
    )
    entries = [{"id": k, "file_name": names[k], "width": size, "height": size} for k in scenes]
    annotations = [
        {"id": number * _CAPTIONS + k, "image_id": number, "caption": caption}
        for number, scene in scenes.items()
        for k, caption in enumerate(captions(scene, _CAPTIONS))
    ]
    info = {"description": "Tabletop world", "version": "1.0"}
    path = folder / f"captions_{split}.json"
    _write_json(path, {"info": info, "licenses": [], "images": entries, "annotations": annotations})
    truth = {
        str(number): {"scene": scene.to_dict(), "long_caption": long_caption(scene)}
        for number, scene in scenes.items()
    }
    _write_json(folder / f"scenes_{split}.json", truth)
    return path


def write_talks(folder: Path, split: str, count: int, start: int = 0) -> tuple[Path, Path]:
    """Write conversations in LLaVA's format and open questions in MMMU's, about drawn scenes.

    The folder gets ``talks_{split}.json`` (a caption and five questions about each scene) and
    ``questions_{split}.jsonl`` (two of its questions, each to be asked alone). The images are those
    of :func:`write_coco`.

    Returns:
        The paths of both files.
    """
    talks, asked = [], []
    for seed in range(start, start + count):
        scene, number = sample_scene(seed, split), image_id(split, seed)
        name, rng = _file_name(split, number), random.Random(f"talks:{number}")
        drawn = asked_of(scene, rng, 5)
        turns = [(f"{one.question}\n\n{ANSWER_BY_PHRASE}", one.right) for one in drawn]
        turns.insert(rng.randrange(6), ("Describe the image.", rng.choice(captions(scene))))
        said = [
            {"from": speaker, "value": text}
            for turn in turns
            for speaker, text in zip(("human", "gpt"), turn, strict=True)
        ]
        said[0]["value"] = f"<image>\n{said[0]['value']}"
        # An import of COCO's layout names an image by its number.
        talks.append({"id": str(number), "image": str(number), "conversations": said})
        asked += [
            _mmmu_row(f"{split}_{q.subject}_{number}{k}", q, name) for k, q in enumerate(drawn[:2])
        ]
    paths = folder / f"talks_{split}.json", folder / f"questions_{split}.jsonl"
    _write_json(paths[0], talks)
    write_jsonl(paths[1], asked)
    return paths


def _mmmu_row(name: str, question: Question, image: str) -> dict[str, Any]:
    return {
        "id": name,
        "question": question.question,
        "options": [],
        "answer": question.right,
        "question_type": "open",
        "subfield": question.subject,
        "image_1": image,
    }


def _file_name(split: str, number: int) -> str:
    return f"tabletop_{split}_{number:012d}.jpg"


def write_scienceqa(
    folder: Path, counts: Mapping[str, int], start: int = 0, size: int = 64, workers: int = 1
) -> Path:
    """Write questions with images as ScienceQA does and return the path of ``problems.json``.

    The folder gets ``problems.json``, ``pid_splits.json`` and ``images/<split>/<id>/image.png``.
    Each problem has an image of its own and one of the questions that its scene answers.

    Args:
        folder: Where to write.
        counts: Number of problems of each split.
        start: Seed of the first problem of a split.
        size: Pixels along a side.
        workers: Processes that draw.
    """
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    pictures: list[Picture] = []
    for split, count in counts.items():
        splits[split] = []
        for seed in range(start, start + count):
            name, scene = str(image_id(split, seed)), sample_scene(seed, split)
            problems[name] = _problem(split, scene)
            splits[split].append(name)
            pictures.append(Picture(scene, folder / "images" / split / name / "image.png", size))
    if {"train", "val"} <= splits.keys():
        splits["trainval"] = splits["train"] + splits["val"]
    _draw(pictures, workers)
    _write_json(folder / "problems.json", problems)
    _write_json(folder / "pid_splits.json", splits)
    return folder / "problems.json"


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


class _Shard(tuple[Picture, ...]):
    """Images that a process draws at a time."""

    def __str__(self) -> str:
        return f"of {len(self)} images that begins with {self[0].path}"


def _draw(pictures: Sequence[Picture], workers: int) -> None:
    """Draw every image that is not there yet."""
    shards = [_Shard(pictures[at : at + _SHARD]) for at in range(0, len(pictures), _SHARD)]
    job = Job(
        _draw_shard,
        lambda shard: all(picture.drawn() for picture in shard),
        size=len,
        label="drawing",
        unit="images",
    )
    run_shards(shards, job, Engine(workers=workers))


def _draw_shard(shard: _Shard, advance: Callable[[int], None]) -> None:
    for picture in shard:
        if not picture.drawn():
            picture.draw()
        advance(1)


def _write_json(path: Path, value: Any) -> None:
    """Write a value as compact JSON, atomically."""
    write_bytes(path, json.dumps(value, ensure_ascii=False).encode())
