"""Questions about images: ScienceQA's and MMMU's, as json or as Parquet."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from gmail_align.data.ids import key_id, numbered
from gmail_align.data.protocols import Protocol, require_dataset
from gmail_align.data.questions import Question, letter
from gmail_align.errors import DataError
from gmail_align.importing.archives import open_several
from gmail_align.importing.members import Members
from gmail_align.importing.parquet import ParquetImages, parquet_file, parquet_values
from gmail_align.importing.rows import table_rows
from gmail_align.importing.source import Images, Source, image_places
from gmail_align.importing.splits import files_in, files_of_split
from gmail_align.importing.staging import Staging
from gmail_align.importing.streams import file_digest, json_pairs

_MMMU_IMAGES: Final = 7  # image_1 .. image_7


def list_scienceqa(
    staging: Staging, problems: Path, members: Members | None, split: str, *, with_image: bool
) -> str:
    """List ScienceQA's ``problems.json``; images are ``[images/]<split>/<id>/image.png``.

    Args:
        staging: Gets the questions and images.
        problems: The json, ``{id: problem}``; each problem names its split.
        members: Where the images are; None lists questions alone.
        split: ``train``, ``val`` or ``test``.
        with_image: Keep only questions with an image.

    Returns:
        The sha256 of the file.

    Raises:
        DataError: the file is missing or of another kind, or has no question of the split.
    """
    count = 0
    for number, problem in json_pairs(problems):
        if not isinstance(problem, dict) or "question" not in problem:
            raise DataError(f"{problems}: entry {number!r} is not a problem of ScienceQA")
        if problem.get("split") != split or (with_image and not problem.get("image")):
            continue
        count += 1
        images = (number,) if problem.get("image") else ()
        question = _scienceqa(staging, number, problem, images, split)
        if question and images:
            tail = f"{split}/{number}/{problem['image']}"
            staging.add_image(number, staging.locate(members, f"images/{tail}", tail))
    if not count:
        raise DataError(f"{problems} does not hold a question of the split {split!r}")
    return file_digest(problems)


def list_scienceqa_table(
    staging: Staging, paths: Sequence[Path], split: str, *, with_image: bool
) -> Members:
    """List ScienceQA in Parquet, its images inside; a question's id is its split and row."""
    for number, path in enumerate(paths):
        has_image = _rows_with(path, ("image",))
        for row, values in table_rows(path, ("question", "choices", "answer")):
            if with_image and not has_image[row]:
                continue
            name = f"{split}-{number}-{row}"
            images = (name,) if has_image[row] else ()
            question = _scienceqa(staging, name, values, images, split)
            if question and images:
                staging.add_image(name, f"{number}:{row}:image")
    return ParquetImages(paths)


def _scienceqa(
    staging: Staging, name: str, problem: Mapping[str, Any], images: tuple[str, ...], split: str
) -> bool:
    try:
        choices, answer = _texts(problem["choices"]), _whole(problem["answer"])
        if not 0 <= answer < len(choices):
            raise IndexError(f"answer {answer} of {len(choices)} choices")
        groups = (problem.get("subject"), problem.get("grade"), problem.get("topic"))
        question = Question(
            question_id=name,
            question=_text(problem["question"]),
            answers=(letter(answer),),
            choices=choices,
            image_ids=images,
            hint=str(problem.get("hint") or ""),
            groups=tuple(str(group) for group in groups if group),
            split=split,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        staging.refuse("questions", name, f"is not a question of ScienceQA: {error}")
        return False
    return _add(staging, question)


def _whole(value: Any) -> int:
    """Return the number of a choice, which some tables write as a float or a text."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"its answer is {value!r}, which is not the number of a choice")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} stands where a text is needed")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    """Return choices: texts, or numbers."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"its choices are {values!r}, which is not a list")
    return tuple(
        str(one) if isinstance(one, int | float) and not isinstance(one, bool) else _text(one)
        for one in values
    )


def list_mmmu(staging: Staging, paths: Sequence[Path], members: Members | None) -> Members | None:
    """List MMMU: the Parquet files of its subjects, or JSON (lines) whose images are files.

    The images ``image_1`` to ``image_7`` of a question get the ids ``{question id}-1`` to ``-7``.

    Returns:
        Where the images are.

    Raises:
        DataError: a file is missing, damaged or of another kind.
    """
    inside = all(path.suffix == ".parquet" for path in paths)
    for number, path in enumerate(paths):
        names = [f"image_{k}" for k in range(1, _MMMU_IMAGES + 1)]
        present = [_rows_with(path, (name,)) for name in names] if inside else []
        for row, values in table_rows(path):
            if not isinstance(values, dict) or values.get("id") in (None, ""):
                reason = values if isinstance(values, DataError) else "is not a question of MMMU"
                staging.refuse("questions", f"row-{number}-{row}", str(reason))
                continue
            places, stem = {}, key_id(str(values["id"]))
            for k, name in enumerate(names, 1):
                if inside and present[k - 1][row]:
                    places[numbered(stem, k)] = f"{number}:{row}:{name}"
                elif not inside and isinstance(values.get(name), str) and values[name]:
                    places[numbered(stem, k)] = staging.locate(members, values[name])
            if _mmmu(staging, values, tuple(places)):
                for image_id, place in places.items():
                    staging.add_image(image_id, place)
    if not staging.count("questions") + staging.left_out_count("questions"):
        raise DataError(f"{paths[0]} does not hold a question of MMMU: give its Parquet or JSON")
    return ParquetImages(paths) if inside else members


def _mmmu(staging: Staging, values: Mapping[str, Any], images: tuple[str, ...]) -> bool:
    name = key_id(str(values["id"]))
    try:
        choices = _literal_list(values.get("options"))
        open_one = values.get("question_type", "multiple-choice") != "multiple-choice"
        right = values["answer"]
        answers = _literal_list(right) if open_one else (str(right).strip(),)
        if not open_one and answers[0] not in [letter(k) for k in range(len(choices))]:
            raise ValueError(f"answer {right!r} of {len(choices)} choices")
        question = Question(
            question_id=name,
            question=_text(values["question"]),
            answers=answers or (str(right),),
            choices=() if open_one else choices,
            image_ids=images,
            groups=tuple(str(values[key]) for key in ("subfield",) if values.get(key)),
            split=str(values["id"]).partition("_")[0],
        )
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        staging.refuse("questions", name, f"is not a question of MMMU: {error}")
        return False
    return _add(staging, question)


def _literal_list(value: Any) -> tuple[str, ...]:
    """Read a list, or a string that holds a Python list; another string is a list of one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(value)
    if isinstance(value, list | tuple):
        return tuple(str(one) for one in value)
    return () if value is None else (str(value),)


def _rows_with(path: Path, columns: Sequence[str]) -> list[bool]:
    """Tell of every row of a Parquet file whether one of the columns is filled."""
    with parquet_file(path) as file:
        have = [name for name in columns if name in file.schema_arrow.names]
        rows = parquet_values(path, file, have) if have else ()
        filled = [any(value is not None for value in row.values()) for row in rows]
        return filled or [False] * file.metadata.num_rows


def _add(staging: Staging, question: Question) -> bool:
    if staging.add_question(question):
        return True
    staging.refuse("questions", question.question_id, "comes twice; the first is kept")
    return False


def scienceqa(
    source: Annotated[Path, Field(description="problems.json, its folder, or Parquet.")],
    images: Images = (),
    split: Annotated[str | None, Field(description="train, val or test (the default).")] = None,
    with_image: Annotated[
        bool, Field(description="Keep only questions that have an image.")
    ] = False,
    protocol: Protocol | None = None,
) -> Source:
    """Import ScienceQA's questions, and their images where they are."""
    require_dataset(protocol, "scienceqa")
    split = protocol.split if protocol else split or "test"
    with_image = with_image or (protocol is not None and protocol.name == "scienceqa_img_test")
    staging, members = Staging(), image_places(images)
    config = {"format": "scienceqa", "split": split, "with_image": with_image}
    if os.path.exists(source / "problems.json"):
        members = members or open_several([source])
        source = source / "problems.json"
    if source.name.endswith((".json", ".json.gz")):
        digest = list_scienceqa(staging, source, members, split, with_image=with_image)
    else:
        paths = files_of_split(files_in([source], (".parquet",), "all"), split)
        members = list_scienceqa_table(staging, paths, split, with_image=with_image)
        digest = staging.fingerprint()
    inputs = {"problems": digest}
    return Source(config=config, inputs=inputs, staging=staging, members=members, convert=True)


def mmmu(
    source: Annotated[Path, Field(description="Folder of the subjects' Parquet, or .jsonl.")],
    images: Images = (),
    split: Annotated[
        str | None, Field(description="dev, validation (the default) or test.")
    ] = None,
    protocol: Protocol | None = None,
) -> Source:
    """Import MMMU's questions with their images."""
    require_dataset(protocol, "mmmu")
    split = protocol.split if protocol else split or "validation"
    staging = Staging()
    paths = files_of_split(files_in([source], (".parquet", ".jsonl", ".json"), "all"), split)
    members = list_mmmu(staging, paths, image_places(images))
    config, inputs = {"format": "mmmu", "split": split}, {"problems": staging.fingerprint()}
    return Source(config=config, inputs=inputs, staging=staging, members=members, convert=True)
