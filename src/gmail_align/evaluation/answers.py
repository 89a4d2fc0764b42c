"""Answers of a multimodal model to ScienceQA's and MMMU's questions, under named protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmail_align.artifacts import Artifact
from gmail_align.data.answer_keys import Answers, open_answers, with_choices
from gmail_align.data.model_outputs import Predictions, open_responses
from gmail_align.data.protocols import PROTOCOLS
from gmail_align.errors import ConfigError, DataError, listed
from gmail_align.items import Items
from gmail_align.metrics.answer_accuracy import (
    ACCURACY,
    CHANCE,
    MMMU_SEED,
    AnswerKey,
    Judgement,
    accuracies,
    chances,
    judge_mmmu,
    judge_read,
    judge_scienceqa,
    membership,
)
from gmail_align.metrics.bootstrap import Estimate, bootstrap_mean
from gmail_align.metrics.mmmu import read_last_answer
from gmail_align.metrics.scienceqa import COLUMNS, Rule
from gmail_align.metrics.statistics import mean_column
from gmail_align.results import Result, begin_result, estimate_table

IMAGES_ONLY = "scienceqa_img_test"
LAST_ANSWER = "last_answer_accuracy"
"""Accuracy by :func:`gmail_align.metrics.mmmu.read_last_answer`, beside the published rule's."""


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


@dataclass(frozen=True)
class Scores:
    """What became of the responses.

    Attributes:
        judgement: By the benchmark's rule.
        others: Metric -> judgement by another rule, offered beside it.
        details: Which ``rule`` read the answers, and what it could not know.
    """

    judgement: Judgement
    others: Mapping[str, Judgement]
    details: Mapping[str, Any]


def score(
    benchmark: str, keys: Sequence[AnswerKey], responses: Predictions, reading: Reading
) -> Scores:
    """Judge responses by the benchmark's rules.

    Args:
        benchmark: ``scienceqa`` or ``mmmu``.
        keys: The right answers, each with a response.
        responses: What the model said.
        reading: How answers are read.

    Raises:
        ConfigError: the rule is not one of the benchmark's.
    """
    texts = responses.texts
    if benchmark == "scienceqa":
        judgement = judge_scienceqa(keys, texts, reading.rule)
        return Scores(judgement, {}, {"rule": reading.rule})
    if reading.rule != "zeroshot":
        raise ConfigError("MMMU has one rule: leave out --rule, which is ScienceQA's")
    if reading.compat and not responses.records:
        return Scores(judge_read(keys, texts), {}, {"rule": "mmmu, answers read already"})
    choices_unknown = sum(one.choices is not None and not one.choices for one in keys)
    judgement = judge_mmmu(keys, texts, fallback_seed=reading.seed if reading.compat else None)
    last = judge_mmmu(keys, texts, read=read_last_answer)
    how = f"random choice with seed {reading.seed}" if reading.compat else "as published"
    return Scores(
        judgement,
        {LAST_ANSWER: last},
        {
            "rule": f"mmmu, {how}",
            "choices_unknown": choices_unknown,
            "unparsed_last_answer": int(last.unparsed.sum()),
        },
    )


def evaluate_answers(
    responses: Path | Artifact,
    answers: Path | Artifact,
    out: Path | None = None,
    *,
    protocol: str = "answers",
    subset: bool = False,
    reading: Reading | None = None,
    seed: int = 0,
) -> Result:
    """Score responses to questions: accuracy over all of them, and by group.

    MMMU's ``accuracy`` is by the published rule; ``last_answer_accuracy`` stands beside it, and
    takes the letter that a response states last. Where every question has known choices,
    ``chance`` is what choices drawn at random would get. The result also holds ``groups`` (subject,
    discipline or column of the table -> estimate), ``unparsed`` (responses in which no answer was
    found), ``rule``, and for MMMU ``choices_unknown``, the questions of which only the letters
    could be looked for.

    Args:
        responses: What the model said.
        answers: Right answers.
        out: Folder of the result; None keeps nothing.
        protocol: ``scienceqa_img_test``, ``scienceqa_test``, ``mmmu_val``, or a label.
        subset: Whether the answers are declared a part of the protocol's.
        reading: How answers are read.
        seed: Of the bootstrap.

    Raises:
        DataError: questions do not have a response or are unknown, or see
            :func:`gmail_align.results.begin_result`.
        ConfigError: the rule is not one of the benchmark's.
    """
    reading = reading or Reading()
    given, said = open_answers(answers), open_responses(responses)
    wanted = PROTOCOLS[protocol].dataset if protocol in PROTOCOLS else given.benchmark
    if wanted != given.benchmark:
        raise DataError(
            f"{answers} holds answers to {given.benchmark}, and {protocol} is of {wanted}"
        )
    asked = _asked(given, protocol)
    matched = _matched(asked, given, said, missing_is_wrong=reading.compat)
    result = begin_result(
        out,
        {"responses": said, "answers": given},
        asdict(reading),
        protocol=protocol,
        task="answers",
        n={"questions": len(asked)},
        subset=subset,
        seed=seed,
    )
    if result.complete is not None:
        return result.complete
    scores = score(given.benchmark, with_choices(asked, said), matched, reading)
    overall, groups = _accuracies(scores, seed)
    unparsed = int(scores.judgement.unparsed.sum())
    details = {"groups": estimate_table(groups), "unparsed": unparsed, **scores.details}
    items = {"": _items(result.protocol, scores)}
    return result.finish(overall, items=items, details=details)


def _accuracies(scores: Scores, seed: int) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Estimate accuracy over all questions, by each rule, and in each group."""
    groups = accuracies(scores.judgement, seed=seed)
    overall = {ACCURACY: groups.pop(ACCURACY)}
    for name, other in scores.others.items():
        overall[name] = accuracies(other, seed=seed)[ACCURACY]
    drawn = chances(scores.judgement.questions)
    if drawn is not None:
        overall[CHANCE] = bootstrap_mean(drawn, seed=seed)
    ordered = [*(one for one in COLUMNS if one in groups), *groups]
    return overall, {name: groups[name] for name in ordered}


def _asked(given: Answers, protocol: str) -> list[AnswerKey]:
    """Return the questions that the protocol asks: of ScienceQA's, maybe those with an image."""
    told = any({"TXT", "IMG", "NO"} & set(one.groups) for one in given.keys)
    if protocol != IMAGES_ONLY or not told:
        return list(given.keys)
    return [one for one in given.keys if "IMG" in one.groups]


def _matched(
    asked: Sequence[AnswerKey], given: Answers, said: Predictions, *, missing_is_wrong: bool
) -> Predictions:
    """Return a response to every question that is asked."""
    names = {one.question_id for one in given.keys}
    unknown = [name for name in said.texts if name not in names]
    if unknown:
        raise DataError(f"there are responses to {listed(unknown, 'unknown question')}")
    missing = [one.question_id for one in asked if one.question_id not in said.texts]
    if missing and not missing_is_wrong:
        raise DataError(f"there is no response to {listed(missing, 'question')}")
    texts: Mapping[str, str] = {
        one.question_id: said.texts.get(one.question_id, "") for one in asked
    }
    return Predictions(texts, said.fingerprint, said.records)


def _items(protocol: str, scores: Scores) -> Items:
    questions = scores.judgement.questions
    right = scores.judgement.right.astype(np.float64)
    columns = {
        name: mean_column(right * inside, inside) for name, inside in membership(questions).items()
    }
    for name, other in scores.others.items():
        columns[name] = mean_column(other.right.astype(np.float64))
    drawn = chances(questions)
    if drawn is not None:
        columns[CHANCE] = mean_column(drawn)
    return Items(protocol, tuple(one.question_id for one in questions), columns)
