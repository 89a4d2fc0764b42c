"""Answers of a multimodal model to ScienceQA's and MMMU's questions, under named protocols."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmail_align.data.protocols import PROTOCOLS
from gmail_align.errors import ConfigError, DataError
from gmail_align.evaluation.answer_files import (
    Responses,
    read_questions,
    read_responses,
    with_choices,
)
from gmail_align.evaluation.items import Items
from gmail_align.evaluation.protocol import named
from gmail_align.evaluation.result import answer, listed, plain
from gmail_align.metrics.answers import (
    ACCURACY,
    MMMU_SEED,
    Judged,
    Question,
    accuracies,
    judge_mmmu,
    judge_read,
    judge_scienceqa,
    membership,
)
from gmail_align.metrics.scienceqa import COLUMNS, Rule
from gmail_align.metrics.statistics import mean_column
from gmail_align.progress import say

IMAGES_ONLY = "scienceqa_img_test"


@dataclass(frozen=True)
class Reading:
    """How answers are read.

    Attributes:
        rule: ScienceQA's: ``zeroshot`` or ``finetuned``.
        compat: Do what the published scripts do with a response that holds no answer. MMMU's draws
            a choice at random, and takes a table of id to answer as read already; LLaVA's, for
            ScienceQA, counts a question without a response as wrong.
        seed: Of those draws.
    """

    rule: Rule = "zeroshot"
    compat: bool = False
    seed: int = MMMU_SEED


def answers_of_files(
    predictions: Path,
    answers: Path,
    *,
    protocol: str,
    reading: Reading | None = None,
    subset: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Any], Items]:
    """Score responses; return the result, ready for JSON, and its items.

    Beside what :func:`gmail_align.evaluation.result.answer` lays out, the result holds ``groups``
    (subject, discipline or column of the table -> ``value``, ``low``, ``high``, ``n``),
    ``unparsed`` (responses in which no answer was found), ``rule``, and for MMMU
    ``choices_unknown``, the questions of which only the letters could be looked for.

    Args:
        predictions: Responses; see :mod:`gmail_align.evaluation.answer_files`.
        answers: Right answers.
        protocol: ``scienceqa_img_test``, ``scienceqa_test``, ``mmmu_val``, or a label for a set
            of one's own in either format.
        reading: How answers are read.
        subset: The answers are declared a part of the protocol's; where they are one without it,
            that is said. Either way the name of the result tells.
        seed: Of the bootstrap.

    Raises:
        DataError: a file cannot be read or is of another kind, questions lack a response or are
            unknown, or there are more than the protocol has.
    """
    start, reading = time.monotonic(), reading or Reading()
    kind, known = read_questions(answers)
    wanted = PROTOCOLS[protocol].dataset if protocol in PROTOCOLS else kind
    if wanted != kind:
        raise DataError(f"{answers} holds answers to {kind}, and {protocol} is of {wanted}")
    responses = read_responses(predictions)
    asked = _asked(known, protocol)
    texts = _matched(asked, known, responses, missing_is_wrong=reading.compat)
    judged, how = _judge(kind, with_choices(asked, responses), texts, responses, reading)
    name = _named(protocol, len(asked), subset=subset)
    found = accuracies(judged, seed=seed)
    overall = {ACCURACY: found.pop(ACCURACY)}
    body = answer(overall, name, {"questions": len(asked)}, start)
    ordered = [*(one for one in COLUMNS if one in found), *found]
    groups = plain({group: found[group] for group in ordered})
    body |= {"groups": groups, "unparsed": int(judged.unparsed.sum()), **how}
    return body, _items(name, judged)


def _named(protocol: str, questions: int, *, subset: bool) -> str:
    """Return the name of the result; a part of a protocol's questions is told by it."""
    known = PROTOCOLS.get(protocol)
    whole = questions if known is None else known.counts["questions"]
    if questions < whole and not subset:
        say(f"the answers are a part of {protocol}, {questions} of {whole}: its name says so")
    part = subset or questions < whole
    return named(protocol, "answers", {"questions": questions}, subset=part)


def _asked(known: Sequence[Question], protocol: str) -> list[Question]:
    """Return the questions that the protocol asks: of ScienceQA's, maybe those with an image."""
    told = any({"TXT", "IMG", "NO"} & set(one.groups) for one in known)
    if protocol != IMAGES_ONLY or not told:
        return list(known)
    return [one for one in known if "IMG" in one.groups]


def _matched(
    asked: Sequence[Question],
    known: Sequence[Question],
    responses: Responses,
    *,
    missing_is_wrong: bool,
) -> dict[str, str]:
    """Return a response to every question; refuse responses to questions that nobody knows."""
    names = {one.question_id for one in known}
    unknown = [name for name in responses.texts if name not in names]
    if unknown:
        raise DataError(f"there are responses to {listed(unknown, 'unknown question')}")
    missing = [one.question_id for one in asked if one.question_id not in responses.texts]
    if missing and not missing_is_wrong:
        raise DataError(f"there is no response to {listed(missing, 'question')}")
    return {one.question_id: responses.texts.get(one.question_id, "") for one in asked}


def _judge(
    kind: str,
    questions: Sequence[Question],
    texts: Mapping[str, str],
    responses: Responses,
    reading: Reading,
) -> tuple[Judged, dict[str, Any]]:
    """Judge by the benchmark's rules; say which."""
    if kind == "scienceqa":
        return judge_scienceqa(questions, texts, reading.rule), {"rule": reading.rule}
    if reading.rule != "zeroshot":
        raise ConfigError("MMMU has one rule: leave out --rule, which is ScienceQA's")
    if reading.compat and not responses.records:
        return judge_read(questions, texts), {"rule": "mmmu, answers read already"}
    choices_unknown = sum(one.choices is not None and not one.choices for one in questions)
    judged = judge_mmmu(questions, texts, fallback_seed=reading.seed if reading.compat else None)
    rule = f"mmmu, random choice with seed {reading.seed}" if reading.compat else "mmmu"
    return judged, {"rule": rule, "choices_unknown": choices_unknown}


def _items(protocol: str, judged: Judged) -> Items:
    right = judged.right.astype(np.float64)
    columns = {
        name: mean_column(right * inside, inside)
        for name, inside in membership(judged.questions).items()
    }
    return Items(protocol, tuple(one.question_id for one in judged.questions), columns)
