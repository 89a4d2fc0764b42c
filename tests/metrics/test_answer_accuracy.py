from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pytest

from gmail_align.errors import UserError
from gmail_align.metrics.answer_accuracy import (
    AnswerKey,
    accuracies,
    judge_mmmu,
    judge_read,
    judge_scienceqa,
)
from gmail_align.metrics.mmmu import (
    DISCIPLINES,
    discipline_of,
    is_right_open,
    read_choice,
    read_last_answer,
    read_open,
    subject_of,
)
from gmail_align.metrics.scienceqa import LETTERS, groups_of, read_letter

CHOICES = {"A": "red ball", "B": "Blue cube", "C": "cone"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("B.", "B"),
        ("A or maybe B", "B"),  # the last one
        ("(A) is wrong; B", "A"),  # brackets come first
        ("I would say it is the blue cube, not a cone", "C"),  # texts, the last one
        ("the blue cube", None),  # too short to be searched for texts
        ("none of these things that you say", None),
        ("BC", None),
        ("", None),
    ],
)
def test_a_choice_is_read_as_mmmu_does(response, letter):
    assert read_choice(response, CHOICES) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("(A) red (B) blue (C) green (D) black\n\nAnswer: B", "B"),
        ("**B**", "B"),
        ("B) Blue cube", "B"),
        ("The answer is\nB", "B"),
        ("The correct option is (C), not (A).", "C"),
        ("Answer: A. On second thought, the answer should be C", "C"),
        ("$\\boxed{B}$", "B"),
        ("Let me think.\nIt is small.\nC.", "C"),
        ("(B)", "B"),
        ("I would say it is the blue cube", "B"),
        ("(A) red (B) blue. So the answer is \\boxed{B}", "B"),
        ("(b)", "B"),
        ("b.", "B"),
        ("Answer - B", "B"),
        ("Answer: A blue cube", "B"),  # the article
        ("Answer: A because it is red", "A"),
        ("(B) is correct, (A) is wrong.", "B"),
        ("I choose C", "C"),
        ("Answer: I think a small cone", "C"),
        ("conical", None),
        ("(A) red (B) blue", None),  # copied options, and no answer
        ("a red ball or a cone", None),
        ("Answer: G", None),
        ("I am not sure.", None),
        ("", None),
    ],
)
def test_the_last_stated_answer_is_read(response, letter):
    choices = {"A": "red ball", "B": "Blue cube", "C": "cone", "D": "cylinder"}
    assert read_last_answer(response, choices) == letter


def test_texts_that_are_not_known_are_not_looked_for():
    response = "I would say it is the blue cube"
    assert read_choice(response, dict.fromkeys(CHOICES)) is None


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("The answer is 3.14159", ["3.14"], True),
        ("so x = 1,234", ["1234"], True),
        ("1.2e3", ["1200"], True),
        ("It is clearly a Hormone.", ["hormone"], True),
        ("a hormone", ["Transformation"], False),
        ("so it is x", ["x"], True),
        ("a box", ["x"], False),  # a letter is looked for with a space beside it
        ("Tampa", ["Tampa", "Florida"], True),
        ("", ["0"], False),
    ],
)
def test_open_answers_are_read_as_mmmu_does(response, gold, right):
    assert is_right_open(read_open(response), gold) is right


def test_thirty_subjects_in_six_disciplines():
    assert len(DISCIPLINES) == 6
    assert sum(len(subjects) for subjects in DISCIPLINES.values()) == 30
    assert subject_of("validation_Art_Theory_12") == "Art_Theory"
    assert discipline_of("Art_Theory") == "Art and Design" and discipline_of("Cooking") is None


def _official(oracles):
    folder = oracles / "mmmu"
    with gzip.open(folder / "llava1.5_13b_responses.json.gz", "rt", encoding="utf-8") as file:
        records = json.load(file)
    questions = [
        AnswerKey(
            one["id"],
            tuple(one["answer"]) if isinstance(one["answer"], list) else (one["answer"],),
            one.get("index2ans"),
        )
        for one in records
    ]
    expected = json.loads((folder / "expected.json").read_text())
    return questions, {one["id"]: one["response"] for one in records}, expected


def test_mmmu_s_own_outputs_score_as_published(oracles):
    questions, responses, expected = _official(oracles)
    seeded = expected["parse_with_random_seed"]["llava1.5_13b"]
    for seed in (0, 1, 2):
        judged = judge_mmmu(questions, responses, fallback_seed=seed)
        assert round(judged.right.mean(), 4) == seeded[str(seed)]
        assert judged.unparsed.sum() == seeded["mc_random_fallbacks"]
    assert judge_mmmu(questions, responses, fallback_seed=42).right.sum() == 330
    assert judge_mmmu(questions, responses).right.sum() == 329
    parsed = json.loads((oracles / "mmmu/llava1.5_13b_total_val_output.json").read_text())
    assert round(judge_read(questions, parsed).right.mean(), 3) == 0.367


def test_open_golds_given_verbatim_are_right(oracles):
    questions, _, _ = _official(oracles)
    asked = [one for one in questions if one.choices is None]
    judged = judge_mmmu(asked, {one.question_id: one.gold[0] for one in asked})
    assert judged.right.all() and len(asked) == 53


def test_unknown_letters_are_looked_for_but_not_the_pronoun():
    asked = [AnswerKey(f"validation_Art_{n}", ("B",), {}) for n in range(4)]
    said = ["B I think", "I", "(B)", "sorry"]
    judged = judge_mmmu(asked, dict(zip([one.question_id for one in asked], said, strict=True)))
    assert judged.right.tolist() == [True, False, True, False]
    assert judged.unparsed.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("response", "zeroshot", "finetuned"),
    [
        ("B", "B", "B"),
        ("b", "B", None),
        (" B ", "B", None),
        ("B.", "B", None),
        ("B. y", "B", "B"),
        ("(B)", None, None),
        ("B: y", None, None),
        ("The answer is B.", None, "B"),
        ("The answer is B. No. The answer is C.", None, None),
        ("F", None, None),
        ("", None, None),
    ],
)
def test_letters_are_read_by_two_rules(response, zeroshot, finetuned):
    assert read_letter(response, "zeroshot") == zeroshot
    assert read_letter(response, "finetuned") == finetuned


def test_llava_s_rule_on_published_outputs(oracles):
    cases = json.loads((oracles / "scienceqa/parse_cases.json").read_text())
    read = [read_letter(case["text"], "finetuned") for case in cases]
    assert [LETTERS.index(one) if one else -1 for one in read] == [case["pred"] for case in cases]


def test_the_scienceqa_leaderboard_s_row(oracles):
    with (oracles / "scienceqa/scienceqa_test_gold_and_preds.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    questions = [
        AnswerKey(
            row["qid"],
            (LETTERS[int(row["gold"])],),
            {},
            ("IMG",) if row["has_image"] == "1" else (),
        )
        for row in rows
    ]
    said = {row["qid"]: LETTERS[int(row["gpt3_cot_ale"])] for row in rows}
    result = accuracies(judge_scienceqa(questions, said, "zeroshot"))
    assert round(100 * result["accuracy"].value, 2) == 75.17
    assert round(100 * result["IMG"].value, 2) == 67.43
    assert (result["accuracy"].n, result["IMG"].n) == (4241, 2017)
    assert result["accuracy"].low < 0.7517 < result["accuracy"].high


def test_scienceqa_s_columns():
    both = {"hint": "h", "image": "i.png", "subject": "social science", "grade": "grade6"}
    neither = {"hint": "", "image": None, "subject": "language science", "grade": "grade7"}
    assert groups_of(both) == ("SOC", "TXT", "IMG", "G1-6")
    assert groups_of(neither) == ("LAN", "NO", "G7-12")
    assert groups_of({"answer": 1}) == ()
    assert groups_of({"image": "i.png", "topic": "biology"}) == ("IMG",)
    assert groups_of({"grade": "grade13", "subject": "biology"}) == ()


def test_a_group_s_interval_is_that_of_its_own_questions():
    rng = np.random.default_rng(0)
    asked = [AnswerKey(str(n), ("A",), {}, ("half",) if n % 2 else ()) for n in range(400)]
    said = {one.question_id: "A" if rng.random() < 0.7 else "B" for one in asked}
    result = accuracies(judge_scienceqa(asked, said, "zeroshot"), resamples=4000)
    inside = [said[one.question_id] == "A" for one in asked if one.groups]
    half = result["half"]
    assert half.value == pytest.approx(np.mean(inside)) and half.n == 200
    width = 2 * 1.96 * np.std(inside) / np.sqrt(200)
    assert half.high - half.low == pytest.approx(width, rel=0.1)
    with pytest.raises(UserError, match="nothing to score"):
        accuracies(judge_scienceqa([], {}, "zeroshot"))
