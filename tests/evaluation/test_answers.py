from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmail_align.data.answer_keys import answer_key
from gmail_align.data.questions import Question
from gmail_align.errors import DataError
from gmail_align.evaluation.answers import Reading, evaluate_answers
from gmail_align.importing.formats.questions import scienceqa
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.write import write_import
from gmail_align.items import ITEMS, read_items
from gmail_align.metrics.answer_accuracy import AnswerKey
from gmail_align.results import Result
from worlds.scoring import per_item


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


PROBLEMS = {
    "1": {"answer": 1, "choices": ["a", "b"], "image": "i.png", "hint": "", "split": "test"},
    "2": {"answer": 0, "choices": ["a", "b"], "image": None, "hint": "h", "split": "test"},
    "3": {"answer": 2, "choices": ["a", "b", "c"], "image": "i.png", "hint": "h", "split": "test"},
    "4": {"answer": 0, "choices": ["a", "b"], "image": "i.png", "hint": "", "split": "train"},
}
SAID = {"1": "B", "2": "A. yes", "3": "who knows"}
MMMU = {
    "validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"},
    "validation_Art_2": {"question_type": "short-answer", "ground_truth": ["24/7", "3.429"]},
    "validation_Math_1": {"question_type": "multiple-choice", "ground_truth": "A"},
}


def score(tmp_path: Path, said: object, gold: object, **how: Any) -> Result:
    files = write(tmp_path / "said.json", said), write(tmp_path / "gold.json", gold)
    return evaluate_answers(*files, **{"protocol": "own", **how})


def accuracy(result: Result) -> float:
    return result.metrics["accuracy"].value


def test_chance_is_what_a_drawn_choice_would_get(tmp_path: Path) -> None:
    result = score(tmp_path, SAID, PROBLEMS)
    assert result.metrics["chance"].value == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    said = dict.fromkeys(MMMU, "B")
    assert "chance" not in score(tmp_path, said, MMMU).metrics  # one is open


def test_scienceqa_from_problems(tmp_path: Path) -> None:
    result = score(tmp_path, SAID, PROBLEMS)
    json.dumps(result.to_json(), allow_nan=False)
    assert accuracy(result) == pytest.approx(2 / 3)
    assert (result.details["unparsed"], result.n) == (1, {"questions": 3})
    groups = result.details["groups"]
    assert {name: (one["value"], one["n"]) for name, one in groups.items()} == {
        "TXT": (0.5, 2),
        "IMG": (0.5, 2),
    }


def test_the_protocol_with_images_leaves_the_others_out(tmp_path: Path) -> None:
    result = score(tmp_path, SAID, PROBLEMS, protocol="scienceqa_img_test", subset=True)
    assert accuracy(result) == 0.5
    assert result.protocol == "scienceqa_img_test (subset: 2 of 2017 questions)"


def test_another_number_of_questions_is_refused_unless_it_is_declared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scienceqa_img_test"):
        score(tmp_path, SAID, PROBLEMS, protocol="scienceqa_img_test")
    many = {str(number): "A" for number in range(2018)}
    with pytest.raises(DataError, match="scienceqa_img_test"):
        score(tmp_path, many, many, protocol="scienceqa_img_test", subset=True)


def test_the_leaderboard_s_columns_by_the_official_formula(oracles: Path, tmp_path: Path) -> None:
    slice_ = oracles.parent / "annotations/scienceqa/problems_first_slice.json.gz"
    problems = json.loads(gzip.decompress(slice_.read_bytes()))
    tested = {name: one for name, one in problems.items() if one["split"] == "test"}
    with (oracles / "scienceqa/scienceqa_test_gold_and_preds.tsv").open() as file:
        rows = {row["qid"]: row for row in csv.DictReader(file, delimiter="\t")}
    said = {name: "ABCDE"[int(rows[name]["gpt3_cot_ale"])] for name in tested}
    assert all(int(rows[name]["gold"]) == one["answer"] for name, one in tested.items())
    result = score(tmp_path, said, problems, protocol="scienceqa_test", subset=True)
    lower = {f"grade{year}" for year in range(1, 7)}
    columns = {  # tools/evaluate_acc.py of ScienceQA, one condition a column
        "NAT": lambda one: one["subject"] == "natural science",
        "SOC": lambda one: one["subject"] == "social science",
        "LAN": lambda one: one["subject"] == "language science",
        "TXT": lambda one: bool(one["hint"]),
        "IMG": lambda one: bool(one["image"]),
        "NO": lambda one: not one["hint"] and not one["image"],
        "G1-6": lambda one: one["grade"] in lower,
        "G7-12": lambda one: one["grade"] not in lower,
    }
    assert list(result.details["groups"]) == list(columns)
    for column, belongs in columns.items():
        right = [said[n] == "ABCDE"[one["answer"]] for n, one in tested.items() if belongs(one)]
        group = result.details["groups"][column]
        assert (group["value"], group["n"]) == (pytest.approx(np.mean(right)), len(right))
    assert result.n == {"questions": 361}


def test_letters_and_records_do_as_well(tmp_path: Path) -> None:
    letters = score(tmp_path, SAID, {"1": "B", "2": "A", "3": "C"})
    assert accuracy(letters) == pytest.approx(2 / 3) and letters.details["groups"] == {}
    lines = "\n".join(json.dumps({"question_id": int(k), "text": v}) for k, v in SAID.items())
    short = [{k: v} for k, v in SAID.items()]
    gold = write(tmp_path / "gold.json", PROBLEMS)
    for name, said in (("said.jsonl", lines), ("said.json", lines), ("short.json", short)):
        file = write(tmp_path / name, said)
        metrics = dict(evaluate_answers(file, gold, protocol="own").metrics)
        assert "chance" not in letters.metrics and metrics.pop("chance")  # letters name no choice
        assert metrics == letters.metrics


def test_the_fine_tuned_rule_and_missing_responses(tmp_path: Path) -> None:
    sentence = {"1": "Because. The answer is B.", "2": "A"}
    how = Reading(rule="finetuned", compat=True)
    result = score(tmp_path, sentence, PROBLEMS, reading=how)
    assert accuracy(result) == pytest.approx(2 / 3) and result.details["unparsed"] == 1
    with pytest.raises(DataError, match="1 question: 3"):
        score(tmp_path, sentence, PROBLEMS)


def test_imported_questions_are_judged_as_their_files_are(tmp_path: Path) -> None:
    more = {"question": "q", "subject": "language science", "topic": "verbs", "grade": "grade7"}
    problems = {name: more | one for name, one in PROBLEMS.items()}
    write(tmp_path / "problems.json", problems)
    source = scienceqa(tmp_path / "problems.json", [])
    made = write_import(source, tmp_path / "set", ImportOptions())["questions"]
    said = write(tmp_path / "said.json", SAID)
    result = evaluate_answers(said, made.folder, protocol="own")
    plain = score(tmp_path, SAID, problems)
    assert (result.metrics, result.details, result.n) == (plain.metrics, plain.details, plain.n)
    assert list(result.details["groups"]) == ["LAN", "TXT", "IMG", "G7-12"]


def test_imported_questions_of_mmmu_bring_their_choices() -> None:
    asked = Question(
        question_id="validation_Art_1", question="q", answers=("B",), choices=("a cat", "a dog")
    )
    assert answer_key(asked, "mmmu") == AnswerKey(
        "validation_Art_1", ("B",), {"A": "a cat", "B": "a dog"}, ("Art and Design", "Art")
    )
    asked = Question(question_id="validation_Art_2", question="q", answers=("7",))
    assert answer_key(asked, "mmmu").choices is None


def test_mmmu_from_the_answer_dictionary_and_from_records(tmp_path: Path) -> None:
    said = {"validation_Art_1": "(B)", "validation_Art_2": "= 3.43", "validation_Math_1": "dunno"}
    result = score(tmp_path, said, MMMU)
    assert accuracy(result) == pytest.approx(2 / 3)
    assert (result.details["unparsed"], result.details["choices_unknown"]) == (1, 2)
    assert (
        result.details["groups"]["Art and Design"]["value"] == 1
        and result.details["groups"]["Math"]["n"] == 1
    )
    read = score(tmp_path, said, MMMU, reading=Reading(compat=True))
    assert accuracy(read) == pytest.approx(1 / 3)  # "(B)" is not the very letter
    records = [
        {"id": name, "response": text, "index2ans": {"A": "red", "B": "blue"}}
        for name, text in said.items()
    ]
    drawn = [
        score(tmp_path, records, MMMU, reading=Reading(compat=True, seed=seed)) for seed in range(8)
    ]
    assert {accuracy(one) for one in drawn} == {2 / 3, 1.0}
    assert all(
        one.details["unparsed"] == 1 and one.details["choices_unknown"] == 0 for one in drawn
    )


def test_the_last_stated_answer_stands_next_to_the_published_rule(tmp_path: Path) -> None:
    said = {
        "validation_Art_1": "(A) red (B) blue (C) green (D) black\n\nAnswer: B",
        "validation_Art_2": "**B**",
        "validation_Math_1": "(A)",
    }
    gold = {
        name: {"question_type": "multiple-choice", "ground_truth": letter}
        for name, letter in zip(said, "BBA", strict=True)
    }
    result = score(tmp_path, said, gold)
    assert accuracy(result) == pytest.approx(1 / 3)
    assert result.metrics["last_answer_accuracy"].value == 1
    assert (result.details["unparsed"], result.details["unparsed_last_answer"]) == (1, 0)
    assert result.details["rule"] == "mmmu, as published"
    assert "last_answer_accuracy" in result.items[""].columns


def test_the_official_files_through_the_front_door(oracles: Path) -> None:
    folder = oracles / "mmmu"
    result = evaluate_answers(
        folder / "llava1.5_13b_total_val_output.json",
        folder / "answer_dict_val.json",
        protocol="mmmu_val",
        reading=Reading(compat=True),
    )
    assert round(accuracy(result), 3) == 0.367
    assert result.protocol == "mmmu_val" and result.n == {"questions": 900}
    sizes = {"Art and Design": 120, "Business": 150, "Tech and Engineering": 210, "Art": 30}
    assert {name: result.details["groups"][name]["n"] for name in sizes} == sizes
    assert len(result.items[""].ids) == 900


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    files = write(tmp_path / "said.json", SAID), write(tmp_path / "gold.json", PROBLEMS)
    result = evaluate_answers(*files, tmp_path / "out", protocol="own")
    again = read_items(tmp_path / "out")
    assert (again.protocol, again.ids) == ("own", ("1", "2", "3"))
    assert again.columns["accuracy"].value == accuracy(result)
    turned = per_item(again.in_order_of(("3", "1", "2")).columns["accuracy"])
    assert turned.tolist() == [0, 1, 1]
    (tmp_path / "out" / ITEMS).write_bytes(b"{}")
    with pytest.raises(DataError, match=ITEMS):
        read_items(tmp_path / "out")
    with pytest.raises(DataError, match="absent"):
        read_items(tmp_path / "absent")


@pytest.mark.parametrize(
    ("said", "gold", "how", "named"),
    [
        (SAID | {"9": "A"}, PROBLEMS, {}, "9"),
        ({}, PROBLEMS, {}, "3 questions: 1, 2, 3"),
        (SAID, {"1": "Z"}, {}, "gold.json.* 1 "),
        (SAID, {"1": {"answer": 1, "choices": ["a"]}}, {}, "gold.json.* 1 "),
        (SAID, {"4": PROBLEMS["4"]}, {}, "gold.json"),
        (SAID, [], {}, "gold.json"),
        (SAID, [{"answer": 1}], {}, "record 0 of .*gold.json"),
        (SAID, [{"id": 1, "answer": 1}, {"id": "1", "answer": 0}], {}, "gold.json.* 1"),
        (SAID, {"a_Art_1": {"question_type": "short-answer"}}, {}, "a_Art_1"),
        (SAID, {"a_Art_1": {"question_type": "short-answer", "ground_truth": " "}}, {}, "a_Art_1"),
        (SAID, {"a_Art_1": {"ground_truth": "AB"}}, {}, "a_Art_1 is 'AB'"),
        (SAID, MMMU, {"protocol": "scienceqa_img_test"}, "mmmu"),
        (SAID, PROBLEMS, {"protocol": "mmmu_val"}, "scienceqa"),
    ],
)
def test_bad_files_are_refused(
    said: object, gold: object, how: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=named):
        score(tmp_path, said, gold, **how)
