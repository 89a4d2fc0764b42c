"""Questions about images: ScienceQA's and MMMU's, as json or as Parquet."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from gmail_align.data.captions import name_id
from gmail_align.data.questions import Question, letter
from gmail_align.errors import DataError
from gmail_align.importing.formats.captioned import located
from gmail_align.importing.formats.streams import file_digest, json_items, json_pairs
from gmail_align.importing.formats.tables import Tables, table_rows
from gmail_align.importing.members import Members
from gmail_align.importing.staging import Stage

_MMMU_IMAGES: Final = 7  # image_1 .. image_7


def list_scienceqa(
    stage: Stage, problems: Path, members: Members | None, split: str, *, with_image: bool
) -> str:
    """List ScienceQA's ``problems.json``; images are ``[images/]<split>/<id>/image.png``.

    Args:
        stage: Gets the questions and images.
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
            raise DataError(f"{problems}: entry {number!r} is no problem of ScienceQA")
        if problem.get("split") != split or (with_image and not problem.get("image")):
            continue
        count += 1
        images = (number,) if problem.get("image") else ()
        question = _scienceqa(stage, number, problem, images, split)
        if question and images:
            tail = f"{split}/{number}/{problem['image']}"
            stage.add_image(number, located(members, f"images/{tail}", tail))
    if not count:
        raise DataError(f"{problems} holds no question of the split {split!r}")
    return file_digest(problems)


def list_scienceqa_table(
    stage: Stage, paths: Sequence[Path], split: str, *, with_image: bool
) -> Members:
    """List ScienceQA in Parquet, its images inside; a question's id is its split and row."""
    for number, path in enumerate(paths):
        has_image = _rows_with(path, ("image",))
        for row, values in table_rows(path, ("question", "choices", "answer")):
            if with_image and not has_image[row]:
                continue
            name = f"{split}-{number}-{row}"
            images = (name,) if has_image[row] else ()
            question = _scienceqa(stage, name, values, images, split)
            if question and images:
                stage.add_image(name, f"{number}:{row}:image")
    return Tables(paths, "image")


def _scienceqa(
    stage: Stage, name: str, problem: Mapping[str, Any], images: tuple[str, ...], split: str
) -> bool:
    try:
        choices = tuple(str(choice) for choice in problem["choices"])
        answer = int(problem["answer"])
        if not 0 <= answer < len(choices):
            raise IndexError(f"answer {answer} of {len(choices)} choices")
        groups = (problem.get("subject"), problem.get("grade"), problem.get("topic"))
        question = Question(
            question_id=name,
            question=str(problem["question"]),
            answers=(letter(answer),),
            choices=choices,
            image_ids=images,
            hint=str(problem.get("hint") or ""),
            groups=tuple(str(group) for group in groups if group),
            split=split,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        stage.refuse("questions", name, f"is no question of ScienceQA: {error}")
        return False
    return _add(stage, question)


def list_mmmu(stage: Stage, paths: Sequence[Path], members: Members | None) -> Members | None:
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
        for row, values in _mmmu_rows(path):
            if not isinstance(values, dict) or "id" not in values:
                stage.refuse("questions", f"row-{number}-{row}", "is no question of MMMU")
                continue
            places, stem = {}, name_id(f"{values['id']}.x")
            for k, name in enumerate(names, 1):
                if inside and present[k - 1][row]:
                    places[f"{stem}-{k}"] = f"{number}:{row}:{name}"
                elif not inside and isinstance(values.get(name), str) and values[name]:
                    places[f"{stem}-{k}"] = located(members, values[name])
            if _mmmu(stage, values, tuple(places)):
                for image_id, place in places.items():
                    stage.add_image(image_id, place)
    if not stage.count("questions") + stage.left_out_count("questions"):
        raise DataError(f"{paths[0]} holds no question of MMMU: give its Parquet or JSON")
    return Tables(paths, "image_1") if inside else members


def _mmmu_rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".json":
        yield from enumerate(json_items(path))
    else:
        yield from table_rows(path)


def _mmmu(stage: Stage, values: Mapping[str, Any], images: tuple[str, ...]) -> bool:
    name = name_id(f"{values['id']}.x")
    try:
        choices = _literal_list(values.get("options"))
        open_one = values.get("question_type", "multiple-choice") != "multiple-choice"
        right = values["answer"]
        answers = _literal_list(right) if open_one else (str(right).strip(),)
        if not open_one and answers[0] not in [letter(k) for k in range(len(choices))]:
            raise ValueError(f"answer {right!r} of {len(choices)} choices")
        question = Question(
            question_id=name,
            question=str(values["question"]),
            answers=answers or (str(right),),
            choices=() if open_one else choices,
            image_ids=images,
            groups=tuple(str(values[key]) for key in ("subfield",) if values.get(key)),
            split=str(values["id"]).partition("_")[0],
        )
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        stage.refuse("questions", name, f"is no question of MMMU: {error}")
        return False
    return _add(stage, question)


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
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        have = [name for name in columns if name in file.schema_arrow.names]
        found: list[bool] = []
        for batch in file.iter_batches(batch_size=64, columns=have):
            masks = [batch.column(name).is_valid().to_pylist() for name in have]
            found += [any(row) for row in zip(*masks, strict=True)] if masks else []
        return found or [False] * file.metadata.num_rows


def _add(stage: Stage, question: Question) -> bool:
    if stage.add_question(question):
        return True
    stage.refuse("questions", question.question_id, "comes twice; the first is kept")
    return False
