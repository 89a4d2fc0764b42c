"""Right answers to questions, read from the files that benchmarks come in.

They are ScienceQA's ``problems.json``, a table of id to letter, MMMU's answer dictionary, MMMU's
output records, or the questions that an import of either made.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact
from gmail_align.data.json_files import file_fingerprint, first_of, read_json
from gmail_align.data.model_outputs import QUESTION_IDS, Predictions
from gmail_align.data.questions import Question, letter, read_questions
from gmail_align.data.references import opened
from gmail_align.errors import ArtifactError, DataError
from gmail_align.metrics.answer_accuracy import AnswerKey
from gmail_align.metrics.mmmu import discipline_of, subject_of
from gmail_align.metrics.scienceqa import LETTERS, groups_of

_MOST_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Answers:
    """The right answers of a benchmark.

    Attributes:
        benchmark: ``scienceqa`` or ``mmmu``.
        keys: One a question.
        fingerprint: Identity of the source.
    """

    benchmark: str
    keys: Sequence[AnswerKey]
    fingerprint: str


def open_answers(source: Path | Artifact) -> Answers:
    """Open right answers; of ScienceQA's problems only the test split, where they say their split.

    Raises:
        DataError: the file cannot be read or holds something else.
        ArtifactError: the folder does not hold questions of ScienceQA or MMMU.
    """
    artifact = opened(source, "questions")
    if artifact is not None:
        benchmark = str(artifact.manifest["config"].get("format"))
        if benchmark not in ("scienceqa", "mmmu"):
            raise ArtifactError(
                f"{artifact.folder} holds questions of {benchmark}: give ScienceQA's or MMMU's"
            )
        keys = [answer_key(one, benchmark) for one in read_questions(artifact)]
        return Answers(benchmark, keys, artifact.fingerprint)
    assert isinstance(source, Path)
    benchmark, keys = _of_file(source, read_json(source))
    return Answers(benchmark, keys, file_fingerprint(source))


def answer_key(asked: Question, benchmark: str) -> AnswerKey:
    """Return what judges the responses to a question.

    Args:
        asked: The question, as models are asked it.
        benchmark: ``scienceqa`` or ``mmmu``.
    """
    texts = {letter(number): text for number, text in enumerate(asked.choices)}
    if benchmark == "mmmu":
        groups = _mmmu_groups(asked.question_id)
        return AnswerKey(asked.question_id, asked.answers, texts or None, groups)
    problem: dict[str, Any] = {"hint": asked.hint, "image": bool(asked.image_ids)}
    for group in asked.groups:  # the subject, the grade and the topic, as far as they are known
        problem.setdefault("grade" if group.startswith("grade") else "subject", group)
    return AnswerKey(asked.question_id, asked.answers, texts, groups_of(problem))


def with_choices(keys: Sequence[AnswerKey], responses: Predictions) -> list[AnswerKey]:
    """Return the keys with the choices that stand in the records of the responses."""
    return [
        replace(key, choices=_choices(responses.records[key.question_id]) or key.choices)
        if key.choices is not None and key.question_id in responses.records
        else key
        for key in keys
    ]


def _of_file(path: Path, body: Any) -> tuple[str, list[AnswerKey]]:
    if isinstance(body, list):
        body = _by_id(path, body)
    if not isinstance(body, dict) or not body:
        raise DataError(
            f"{path} does not hold answers: give id -> answer, or ScienceQA's problems.json"
        )
    first = next(iter(body.values()))
    if isinstance(first, dict) and ("ground_truth" in first or "question_type" in first):
        return "mmmu", [_mmmu(path, name, entry) for name, entry in body.items()]
    problems = {name: entry for name, entry in body.items() if _is_tested(entry)}
    if not problems:
        raise DataError(f"{path} does not hold a problem of the test split")
    return "scienceqa", [_scienceqa(path, name, entry) for name, entry in problems.items()]


def _by_id(path: Path, records: Sequence[Any]) -> dict[str, Any]:
    records_by_id: dict[str, Any] = {}
    for number, record in enumerate(records):
        name = first_of(record, QUESTION_IDS)
        if name is None:
            raise DataError(f"record {number} of {path} does not have an id: add it")
        if records_by_id.setdefault(str(name), record) is not record:
            raise DataError(f"{path} holds more than one answer to {name}: keep one")
    return records_by_id


def _is_tested(entry: Any) -> bool:
    return not isinstance(entry, dict) or entry.get("split", "test") == "test"


def _scienceqa(path: Path, name: str, entry: Any) -> AnswerKey:
    problem = entry if isinstance(entry, dict) else {"answer": entry}
    answer = problem.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(LETTERS):
        answer = LETTERS[answer]
    if not isinstance(answer, str) or answer not in LETTERS:
        raise DataError(
            f"{path}: the answer to {name} is {answer!r}: a letter A to E is needed, or an index"
        )
    texts = problem.get("choices")
    offered = dict.fromkeys(LETTERS)
    if isinstance(texts, list):
        offered = {one: str(text) for one, text in zip(LETTERS, texts, strict=False)}
    if answer not in offered:
        raise DataError(f"{path}: the answer to {name} is {answer}, beyond its choices")
    return AnswerKey(name, (answer,), offered, groups_of(problem))


def _mmmu(path: Path, name: str, entry: Any) -> AnswerKey:
    """Read an entry of MMMU's answer dictionary, or one of its output records."""
    gold = first_of(entry, ("ground_truth", "answer"))
    if isinstance(gold, str):
        gold = [gold]
    texts = isinstance(gold, list) and all(isinstance(one, str) and one.strip() for one in gold)
    if not texts or not gold:
        raise DataError(
            f"{path}: {name} does not have a ground_truth: give MMMU's answer dictionary"
        )
    groups = _mmmu_groups(name)
    if entry.get("question_type", "multiple-choice") != "multiple-choice":
        return AnswerKey(name, tuple(gold), None, groups)
    choices = _choices(entry)
    odd = [one for one in gold if one not in tuple(choices or _MOST_LETTERS)]
    if odd:
        raise DataError(f"{path}: the answer to {name} is {odd[0]!r}, not a letter of its choices")
    return AnswerKey(name, tuple(gold), choices, groups)


def _mmmu_groups(question_id: str) -> tuple[str, ...]:
    subject = subject_of(question_id)
    return tuple(one for one in (discipline_of(subject), subject) if one)


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
