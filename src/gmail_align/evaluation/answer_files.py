"""Questions, right answers and responses, read from the files that benchmarks come in.

Answers: ScienceQA's ``problems.json``, a table of id to letter, MMMU's answer dictionary, MMMU's
output records, or the questions that an import of either made. Responses: a table of id to text, a
list of records, or JSON lines.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, load
from gmail_align.data import questions as data_questions
from gmail_align.errors import ArtifactError, DataError
from gmail_align.evaluation.json_files import is_lines, parse_lines, parse_table, read_text
from gmail_align.metrics.answers import Question
from gmail_align.metrics.mmmu import discipline_of, subject_of
from gmail_align.metrics.scienceqa import LETTERS, groups_of

_IDS = ("question_id", "id", "image_id")
_TEXTS = ("response", "text", "prediction", "output")
_MOST_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Responses:
    """What a model said.

    Attributes:
        texts: Question id -> response.
        records: Question id -> the record it stood in, where records were given.
    """

    texts: Mapping[str, str]
    records: Mapping[str, Mapping[str, Any]]


def read_responses(path: Path) -> Responses:
    """Read responses.

    Raises:
        DataError: the file cannot be read, a record lacks an id or a text, or an id comes twice.
    """
    if path.is_dir():
        path = path / "predictions.jsonl"
    text = read_text(path)
    if is_lines(path, text):
        return _of_records(path, parse_lines(path, text))
    body = parse_table(path, text)
    if isinstance(body, list):
        return _of_records(path, body)
    if not isinstance(body, dict):
        raise DataError(f"{path} holds no responses: give id -> response, or a list of records")
    wrong = [name for name, value in body.items() if not isinstance(value, str)]
    if wrong:
        raise DataError(f"{path}: the response to {wrong[0]} is no text ({len(wrong)} such)")
    return Responses(body, {})


def _of_records(path: Path, records: Sequence[Any]) -> Responses:
    texts: dict[str, str] = {}
    kept: dict[str, Mapping[str, Any]] = {}
    for number, record in enumerate(records):
        name, text = (_first(record, _IDS), _first(record, _TEXTS))
        if name is None and isinstance(record, dict) and len(record) == 1:
            name, text = next(iter(record.items()))
        if name is None or not isinstance(text, str):
            raise DataError(f"record {number} of {path} lacks an id or a response: add it")
        if str(name) in texts:
            raise DataError(f"{path} holds more than one response to {name}: keep one")
        texts[str(name)], kept[str(name)] = text, record
    return Responses(texts, kept)


def _first(record: Any, keys: Iterable[str]) -> Any:
    if not isinstance(record, dict):
        return None
    return next((record[key] for key in keys if key in record), None)


def read_questions(path: Path) -> tuple[str, list[Question]]:
    """Read questions and their right answers; return ``scienceqa`` or ``mmmu``, and them.

    Of ScienceQA's problems only the test split is taken, where they say their split.

    Raises:
        DataError: the file cannot be read or holds something else.
        ArtifactError: the folder holds no questions, or of another format.
    """
    if path.is_dir():
        return _of_import(load(path, "questions"))
    body = parse_table(path, read_text(path))
    if isinstance(body, list):
        body = _by_id(path, body)
    if not isinstance(body, dict) or not body:
        raise DataError(f"{path} holds no answers: give id -> answer, or ScienceQA's problems.json")
    first = next(iter(body.values()))
    if isinstance(first, dict) and ("ground_truth" in first or "question_type" in first):
        return "mmmu", [_mmmu(path, name, entry) for name, entry in body.items()]
    problems = {name: entry for name, entry in body.items() if _is_tested(entry)}
    if not problems:
        raise DataError(f"{path} holds no problem of the test split")
    return "scienceqa", [_scienceqa(path, name, entry) for name, entry in problems.items()]


def _of_import(artifact: Artifact) -> tuple[str, list[Question]]:
    """Return the format and the questions of an import.

    Raises:
        ArtifactError: they are neither ScienceQA's nor MMMU's.
    """
    kind = str(artifact.manifest["config"].get("format"))
    if kind not in ("scienceqa", "mmmu"):
        raise ArtifactError(f"{artifact.folder} holds questions of {kind}: ScienceQA's or MMMU's")
    asked = data_questions.read_questions(artifact)
    return kind, [question_of(one, kind) for one in asked]


def question_of(asked: data_questions.Question, kind: str) -> Question:
    """Return what judges a question that was imported: the one place where the two meet.

    Args:
        asked: The question, as models are asked it.
        kind: ``scienceqa`` or ``mmmu``.
    """
    letters = [data_questions.letter(number) for number in range(len(asked.choices))]
    if kind == "mmmu":
        subject = subject_of(asked.question_id)
        groups = tuple(one for one in (discipline_of(subject), subject) if one)
        texts = dict(zip(letters, asked.choices, strict=True)) if asked.choices else None
        return Question(asked.question_id, asked.answers, texts, groups)
    problem: dict[str, Any] = {"hint": asked.hint, "image": bool(asked.image_ids)}
    for group in asked.groups:  # the subject, the grade and the topic, as far as they are said
        problem.setdefault("grade" if group.startswith("grade") else "subject", group)
    own = dict.fromkeys(letters)
    return Question(asked.question_id, asked.answers, own, groups_of(problem))


def _by_id(path: Path, records: Sequence[Any]) -> dict[str, Any]:
    """Return records by their ids.

    Raises:
        DataError: one has none, or an id comes twice.
    """
    found: dict[str, Any] = {}
    for number, record in enumerate(records):
        name = _first(record, _IDS)
        if name is None:
            raise DataError(f"record {number} of {path} lacks an id: add it")
        if found.setdefault(str(name), record) is not record:
            raise DataError(f"{path} holds more than one answer to {name}: keep one")
    return found


def with_choices(questions: Sequence[Question], responses: Responses) -> list[Question]:
    """Return the questions with the choices that stand in the records of the responses."""
    return [
        replace(one, choices=_choices(responses.records[one.question_id]) or one.choices)
        if one.choices is not None and one.question_id in responses.records
        else one
        for one in questions
    ]


def _is_tested(entry: Any) -> bool:
    return not isinstance(entry, dict) or entry.get("split", "test") == "test"


def _scienceqa(path: Path, name: str, entry: Any) -> Question:
    problem = entry if isinstance(entry, dict) else {"answer": entry}
    answer = problem.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(LETTERS):
        answer = LETTERS[answer]
    if not isinstance(answer, str) or answer not in LETTERS:
        raise DataError(
            f"{path}: the answer to {name} is {answer!r}: a letter A to E is needed, or an index"
        )
    texts = problem.get("choices")
    offered = LETTERS[: len(texts)] if isinstance(texts, list) else LETTERS
    if answer not in offered:
        raise DataError(f"{path}: the answer to {name} is {answer}, beyond its choices")
    return Question(name, (answer,), dict.fromkeys(offered), groups_of(problem))


def _mmmu(path: Path, name: str, entry: Any) -> Question:
    """Read an entry of MMMU's answer dictionary, or one of its output records."""
    gold = _first(entry, ("ground_truth", "answer"))
    if isinstance(gold, str):
        gold = [gold]
    if not isinstance(gold, list) or not gold or not all(isinstance(one, str) for one in gold):
        raise DataError(f"{path}: {name} has no ground_truth: give MMMU's answer dictionary")
    subject = subject_of(name)
    groups = tuple(one for one in (discipline_of(subject), subject) if one)
    if entry.get("question_type", "multiple-choice") != "multiple-choice":
        return Question(name, tuple(gold), None, groups)
    return Question(name, tuple(gold), _choices(entry) or {}, groups)


def _choices(entry: Mapping[str, Any]) -> dict[str, str | None]:
    """Return letter -> text of a record's choices, none where it does not say them."""
    if isinstance(entry.get("index2ans"), dict):
        return {str(letter): str(text) for letter, text in entry["index2ans"].items()}
    options = entry.get("options")
    if isinstance(options, str):  # the hub keeps a list written as Python would
        try:
            options = ast.literal_eval(options)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            options = None
    if isinstance(options, list) and options:
        return {letter: str(text) for letter, text in zip(_MOST_LETTERS, options, strict=False)}
    return {}
