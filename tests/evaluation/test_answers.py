from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmail_align.data import questions as data_questions
from gmail_align.errors import DataError
from gmail_align.evaluation.answer_files import question_of
from gmail_align.evaluation.answers import Reading, answers_of_files
from gmail_align.evaluation.items import ITEMS, read_items, write_items
from gmail_align.importing.formats.questions import scienceqa
from gmail_align.importing.source import ImportOptions
from gmail_align.importing.write import write_import
from gmail_align.metrics.answers import Question

from .test_caption_files import KEYS, write

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


def score(tmp_path: Path, said: object, gold: object, **how: Any) -> dict[str, Any]:
    files = write(tmp_path / "said.json", said), write(tmp_path / "gold.json", gold)
    return answers_of_files(*files, **{"protocol": "own", **how})[0]


def test_scienceqa_from_problems(tmp_path: Path) -> None:
    found = score(tmp_path, SAID, PROBLEMS)
    assert set(found) >= KEYS | {"groups", "unparsed", "rule"}
    json.dumps(found, allow_nan=False)
    assert found["metrics"] == {"accuracy": pytest.approx(2 / 3)}
    assert (found["unparsed"], found["n"]) == (1, {"questions": 3})
    assert {name: (one["value"], one["n"]) for name, one in found["groups"].items()} == {
        "TXT": (0.5, 2),
        "IMG": (0.5, 2),
    }


def test_the_protocol_with_images_leaves_the_others_out(tmp_path: Path) -> None:
    found = score(tmp_path, SAID, PROBLEMS, protocol="scienceqa_img_test", subset=True)
    assert found["metrics"]["accuracy"] == 0.5
    assert found["protocol"] == "scienceqa_img_test (subset: 2 of 2017 questions)"


def test_a_part_of_a_protocol_says_so_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = score(tmp_path, SAID, PROBLEMS, protocol="scienceqa_img_test")
    assert found["protocol"] == "scienceqa_img_test (subset: 2 of 2017 questions)"
    assert "a part of scienceqa_img_test, 2 of 2017" in capsys.readouterr().err
    many = {str(number): "A" for number in range(2018)}
    with pytest.raises(DataError, match="is no part of it"):
        score(tmp_path, many, many, protocol="scienceqa_img_test")


def test_the_leaderboard_s_columns_by_the_official_formula(oracles: Path, tmp_path: Path) -> None:
    slice_ = oracles.parent / "annotations/scienceqa/problems_first_slice.json.gz"
    problems = json.loads(gzip.decompress(slice_.read_bytes()))
    tested = {name: one for name, one in problems.items() if one["split"] == "test"}
    with (oracles / "scienceqa/scienceqa_test_gold_and_preds.tsv").open() as file:
        rows = {row["qid"]: row for row in csv.DictReader(file, delimiter="\t")}
    said = {name: "ABCDE"[int(rows[name]["gpt3_cot_ale"])] for name in tested}
    assert all(int(rows[name]["gold"]) == one["answer"] for name, one in tested.items())
    found = score(tmp_path, said, problems, protocol="scienceqa_test")
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
    assert list(found["groups"]) == list(columns)
    for column, belongs in columns.items():
        right = [said[n] == "ABCDE"[one["answer"]] for n, one in tested.items() if belongs(one)]
        told = found["groups"][column]
        assert (told["value"], told["n"]) == (pytest.approx(np.mean(right)), len(right))
    assert found["n"] == {"questions": 361}


def test_letters_and_records_do_as_well(tmp_path: Path) -> None:
    letters = score(tmp_path, SAID, {"1": "B", "2": "A", "3": "C"})
    assert letters["metrics"]["accuracy"] == pytest.approx(2 / 3) and letters["groups"] == {}
    lines = "\n".join(json.dumps({"question_id": int(k), "text": v}) for k, v in SAID.items())
    short = [{k: v} for k, v in SAID.items()]
    gold = write(tmp_path / "gold.json", PROBLEMS)
    for name, said in (("said.jsonl", lines), ("said.json", lines), ("short.json", short)):
        file = write(tmp_path / name, said)
        assert answers_of_files(file, gold, protocol="own")[0]["metrics"] == letters["metrics"]


def test_the_fine_tuned_rule_and_missing_responses(tmp_path: Path) -> None:
    sentence = {"1": "Because. The answer is B.", "2": "A"}
    how = Reading(rule="finetuned", compat=True)
    found = score(tmp_path, sentence, PROBLEMS, reading=how)
    assert found["metrics"]["accuracy"] == pytest.approx(2 / 3) and found["unparsed"] == 1
    with pytest.raises(DataError, match="no response to 1 question: 3"):
        score(tmp_path, sentence, PROBLEMS)


def test_imported_questions_are_judged_as_their_files_are(tmp_path: Path) -> None:
    more = {"question": "q", "subject": "language science", "topic": "verbs", "grade": "grade7"}
    problems = {name: more | one for name, one in PROBLEMS.items()}
    write(tmp_path / "problems.json", problems)
    source = scienceqa(tmp_path / "problems.json", [])
    made = write_import(source, tmp_path / "set", ImportOptions())["questions"]
    said = write(tmp_path / "said.json", SAID)
    found = answers_of_files(said, made.folder, protocol="own")[0]
    plain = score(tmp_path, SAID, problems)
    for key in ("metrics", "groups", "unparsed", "n"):
        assert found[key] == plain[key]
    assert list(found["groups"]) == ["LAN", "TXT", "IMG", "G7-12"]


def test_imported_questions_of_mmmu_bring_their_choices() -> None:
    asked = data_questions.Question(
        question_id="validation_Art_1", question="q", answers=("B",), choices=("a cat", "a dog")
    )
    assert question_of(asked, "mmmu") == Question(
        "validation_Art_1", ("B",), {"A": "a cat", "B": "a dog"}, ("Art and Design", "Art")
    )
    asked = data_questions.Question(question_id="validation_Art_2", question="q", answers=("7",))
    assert question_of(asked, "mmmu").choices is None


def test_mmmu_from_the_answer_dictionary_and_from_records(tmp_path: Path) -> None:
    said = {"validation_Art_1": "(B)", "validation_Art_2": "= 3.43", "validation_Math_1": "dunno"}
    found = score(tmp_path, said, MMMU)
    assert found["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert (found["unparsed"], found["choices_unknown"]) == (1, 2)
    assert found["groups"]["Art and Design"]["value"] == 1 and found["groups"]["Math"]["n"] == 1
    read = score(tmp_path, said, MMMU, reading=Reading(compat=True))
    assert read["metrics"]["accuracy"] == pytest.approx(1 / 3)  # "(B)" is not the very letter
    records = [
        {"id": name, "response": text, "index2ans": {"A": "red", "B": "blue"}}
        for name, text in said.items()
    ]
    drawn = [
        score(tmp_path, records, MMMU, reading=Reading(compat=True, seed=seed)) for seed in range(8)
    ]
    assert {one["metrics"]["accuracy"] for one in drawn} == {2 / 3, 1.0}
    assert all(one["unparsed"] == 1 and one["choices_unknown"] == 0 for one in drawn)


def test_the_official_files_through_the_front_door(oracles: Path) -> None:
    folder = oracles / "mmmu"
    found, items = answers_of_files(
        folder / "llava1.5_13b_total_val_output.json",
        folder / "answer_dict_val.json",
        protocol="mmmu_val",
        reading=Reading(compat=True),
    )
    assert round(found["metrics"]["accuracy"], 3) == 0.367
    assert found["protocol"] == "mmmu_val" and found["n"] == {"questions": 900}
    sizes = {"Art and Design": 120, "Business": 150, "Tech and Engineering": 210, "Art": 30}
    assert {name: found["groups"][name]["n"] for name in sizes} == sizes
    assert len(items.ids) == 900


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    files = write(tmp_path / "said.json", SAID), write(tmp_path / "gold.json", PROBLEMS)
    found, items = answers_of_files(*files, protocol="own")
    write_items(tmp_path / ITEMS, items)
    again = read_items(tmp_path)
    assert (again.protocol, again.ids) == ("own", ("1", "2", "3"))
    assert again.columns["accuracy"].value == found["metrics"]["accuracy"]
    turned = again.in_order_of(("3", "1", "2")).columns["accuracy"].per_item
    assert turned.tolist() == [0, 1, 1]
    (tmp_path / ITEMS).write_bytes(b"{}")
    with pytest.raises(DataError, match="damaged"):
        read_items(tmp_path)
    with pytest.raises(DataError, match="keeps no items"):
        read_items(tmp_path / "absent")


@pytest.mark.parametrize(
    ("said", "gold", "how", "words"),
    [
        (SAID | {"9": "A"}, PROBLEMS, {}, "1 unknown question: 9"),
        ({}, PROBLEMS, {}, "no response to 3 questions: 1, 2, 3"),
        (SAID | {"1": 1}, PROBLEMS, {}, "the response to 1 is no text"),
        ('{"1": "A", "1": "B"}', PROBLEMS, {}, "'1' more than once"),
        ([{"id": 1, "text": "A"}, {"id": 1, "text": "B"}], PROBLEMS, {}, "more than one response"),
        ([{"id": 1}], PROBLEMS, {}, "record 0 of .* lacks"),
        ("7", PROBLEMS, {}, "holds no responses"),
        ('{"1": "A"', PROBLEMS, {}, "not valid JSON"),
        (SAID, {"1": "Z"}, {}, "letter A to E"),
        (SAID, {"1": {"answer": 1, "choices": ["a"]}}, {}, "beyond its choices"),
        (SAID, {"4": PROBLEMS["4"]}, {}, "no problem of the test split"),
        (SAID, [], {}, "holds no answers"),
        (SAID, [{"answer": 1}], {}, "record 0 of .* lacks an id"),
        (SAID, [{"id": 1, "answer": 1}, {"id": "1", "answer": 0}], {}, "more than one answer to 1"),
        (SAID, {"a_Art_1": {"question_type": "short-answer"}}, {}, "no ground_truth"),
        (SAID, MMMU, {"protocol": "scienceqa_img_test"}, "answers to mmmu"),
        (SAID, PROBLEMS, {"protocol": "mmmu_val"}, "answers to scienceqa"),
    ],
)
def test_bad_files_are_refused(
    said: object, gold: object, how: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        score(tmp_path, said, gold, **how)
