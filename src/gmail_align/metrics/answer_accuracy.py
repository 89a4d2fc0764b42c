"""Accuracy of answers to questions with choices, or open ones, over all and by group."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import Estimate, Values, bootstrap_replicates, interval
from gmail_align.metrics.mmmu import is_right_open, read_choice, read_open, subject_of
from gmail_align.metrics.scienceqa import Rule, read_letter

MMMU_SEED = 42
"""What MMMU's evaluation seeds its random choices with."""
ACCURACY = "accuracy"
CHANCE = "chance"
"""What a choice drawn at random would get."""
ReadChoice = Callable[[str, Mapping[str, str | None]], str | None]
"""Response and letter -> the choice's text; returns the letter, or None where there is none."""


@dataclass(frozen=True)
class AnswerKey:
    """The right answers to a question, and what its choices are.

    Attributes:
        question_id: the id that responses are given under.
        gold: the right letter or letters, or the texts that are right.
        choices: letter -> text of the choice, None where the text is not known; empty where not
            even the letters are known; None of an open question.
        groups: what the question counts in besides the whole.
    """

    question_id: str
    gold: tuple[str, ...]
    choices: Mapping[str, str | None] | None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """Whether each response was right, in the order of the questions.

    Attributes:
        questions: the questions.
        right: whether the response was right.
        unparsed: whether no answer could be read; such a response is wrong, except where a random
            choice stands in for it.
    """

    questions: tuple[AnswerKey, ...]
    right: NDArray[np.bool_]
    unparsed: NDArray[np.bool_]


def judge_scienceqa(
    questions: Sequence[AnswerKey], responses: Mapping[str, str], rule: Rule
) -> Judgement:
    """Judge responses as letters, read by one of the two rules of `read_letter`."""
    read = [read_letter(responses[one.question_id], rule) for one in questions]
    right = [letter in one.gold for letter, one in zip(read, questions, strict=True)]
    return _judgement(questions, right, [letter is None for letter in read])


def judge_mmmu(
    questions: Sequence[AnswerKey],
    responses: Mapping[str, str],
    *,
    read: ReadChoice = read_choice,
    fallback_seed: int | None = None,
) -> Judgement:
    """Judge responses by MMMU's rules.

    Args:
        questions: the questions.
        responses: question id -> what the model said.
        read: how the letter of a multiple-choice response is read.
        fallback_seed: seed of the random choices that stand in for responses without an answer,
            drawn subject by subject as the benchmark's own script does; None: they are wrong.
    """
    draws = random.Random(fallback_seed)
    right, unparsed = [False] * len(questions), [False] * len(questions)
    order = sorted(range(len(questions)), key=lambda at: subject_of(questions[at].question_id))
    for at in order:
        one, response = questions[at], responses[questions[at].question_id]
        if one.choices is None:
            right[at] = is_right_open(read_open(response), one.gold)
            continue
        letter = read(response, one.choices or _assumed(response))
        unparsed[at] = letter is None
        if letter is None and fallback_seed is not None:
            letter = draws.choice(list(one.choices or _assumed(response)))
        right[at] = letter in one.gold
    return _judgement(questions, right, unparsed)


def _assumed(response: str) -> dict[str, str | None]:
    """Return the letters to look for where the choices are unknown: MMMU has up to nine.

    "I" is one only where it is the whole response; elsewhere it is the pronoun.
    """
    letters = "ABCDEFGHI" if response.strip(" .()") == "I" else "ABCDEFGH"
    return dict.fromkeys(letters)


def judge_read(questions: Sequence[AnswerKey], answers: Mapping[str, str]) -> Judgement:
    """Judge answers that someone has read already: a choice is right if it is the very letter.

    MMMU's script for parsed outputs; open answers are read as in `judge_mmmu`.
    """
    right = [
        answers[one.question_id] in one.gold
        if one.choices is not None
        else is_right_open(read_open(answers[one.question_id]), one.gold)
        for one in questions
    ]
    return _judgement(questions, right, [False] * len(questions))


def accuracies(
    judgement: Judgement, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate accuracy over all questions, and in every group; resampled over questions.

    Raises:
        UserError: there are no questions.
    """
    if not judgement.questions:
        raise UserError("there is nothing to score: no questions were given")
    members = membership(judgement.questions)
    names, inside = list(members), np.stack(list(members.values()), axis=1)
    right = inside * judgement.right[:, None]

    def means(weights: Values) -> Values:
        return (weights @ right) / (weights @ inside)

    count = len(judgement.questions)
    replicates = bootstrap_replicates(count, means, resamples=resamples, seed=seed)
    values, sizes = right.sum(0) / inside.sum(0), inside.sum(0)
    return {
        name: interval(float(values[at]), replicates[:, at], int(sizes[at]))
        for at, name in enumerate(names)
    }


def chances(questions: Sequence[AnswerKey]) -> Values | None:
    """Return the chance that a choice drawn at random is right; None where a choice is unknown."""
    choices = [list((one.choices or {"": None}).values()) for one in questions]
    if any(text is None for texts in choices for text in texts):
        return None
    pairs = zip(questions, choices, strict=True)
    return np.array([len(one.gold) / len(texts) for one, texts in pairs])


def membership(questions: Sequence[AnswerKey]) -> dict[str, Values]:
    """Return, for the whole and each group, 1 where a question belongs to it and 0 elsewhere."""
    groups = dict.fromkeys(name for one in questions for name in one.groups)
    inside = {
        name: np.array([name in one.groups for one in questions], dtype=np.float64)
        for name in groups
    }
    return {ACCURACY: np.ones(len(questions))} | inside


def _judgement(
    questions: Sequence[AnswerKey], right: Sequence[bool], unparsed: Sequence[bool]
) -> Judgement:
    return Judgement(tuple(questions), np.array(right, dtype=bool), np.array(unparsed, dtype=bool))
