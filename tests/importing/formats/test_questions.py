from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmail_align.data.images import ImageStore
from gmail_align.data.questions import Question, read_questions
from gmail_align.errors import ArtifactError, DataError
from gmail_align.importing.formats.classes import folder
from gmail_align.importing.formats.questions import mmmu, scienceqa
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from gmail_align.importing.write import write_import
from gmail_align.metrics.scienceqa import groups_of

Make = Callable[..., bytes]


def problem(split: str, image: str | None, answer: int = 1) -> dict[str, Any]:
    return {
        "question": "Which?",
        "choices": ["this", "that"],
        "answer": answer,
        "hint": "",
        "image": image,
        "grade": "grade2",
        "subject": "natural science",
        "topic": "biology",
        "split": split,
    }


def test_half_a_character_leaves_its_question_out(tmp_path: Path) -> None:
    whole, half = problem("test", None), problem("test", None)
    half["question"] = "Which\ud800?"
    (tmp_path / "problems.json").write_text(json.dumps({"1": half, "2": whole}))
    made = write_import(
        scienceqa(tmp_path / "problems.json", []),
        tmp_path / "out",
        ImportOptions(limit_quarantine=1.0),
    )
    artifact = made["questions"]
    assert [one.question_id for one in read_questions(artifact)] == ["2"]
    assert "U+D800" in artifact.path("quarantine.jsonl").read_text()


def test_scienceqa_as_json_with_its_image_folders(tmp_path: Path, make_picture: Make) -> None:
    problems = {
        "1": problem("train", "image.png"),
        "2": problem("test", "image.png"),
        "3": problem("test", None, answer=0),
        "4": problem("test", "image.png", answer=7),
        "5": problem("test", "image.png"),
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    for name in ("2", "4", "5"):
        path = tmp_path / "images/test" / name / "image.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(make_picture(int(name), "PNG") if name != "5" else b"broken")
    made = write_import(
        scienceqa(tmp_path, []), tmp_path / "out", ImportOptions(limit_quarantine=0.5)
    )
    assert list(read_questions(made["questions"])) == [
        Question(
            question_id=name,
            question="Which?",
            answers=(answer,),
            choices=("this", "that"),
            image_ids=images,
            groups=("natural science", "grade2", "biology"),
            split="test",
        )
        for name, answer, images in (("2", "B", ("2",)), ("3", "A", ()))
    ]
    assert ImageStore(made["images"]).ids == ["2"]
    lines = made["questions"].path("quarantine.jsonl").read_text().splitlines()
    reasons = {row["id"]: row["reason"] for row in map(json.loads, lines)}
    assert reasons == {
        "4": "is not a question of ScienceQA: answer 7 of 2 choices",
        "5": "image 5 was left out",
    }
    only = scienceqa(tmp_path / "problems.json", [], with_image=True)
    made = write_import(only, tmp_path / "text", ImportOptions(limit_quarantine=0.5))
    assert [one.question_id for one in read_questions(made["questions"])] == ["2", "5"]
    with pytest.raises(DataError, match="split 'val'"):
        scienceqa(tmp_path / "problems.json", [], split="val")
    with pytest.raises(ArtifactError, match="holds images, but questions are needed"):
        list(
            read_questions(
                write_import(folder([tmp_path / "images/test/2"]), tmp_path / "i", ImportOptions())[
                    "images"
                ]
            )
        )


def test_scienceqa_as_parquet(tmp_path: Path, make_picture: Make) -> None:
    rows = []
    for number in range(3):
        row = problem("", None, answer=number % 2)
        picture = {"bytes": make_picture(number, "PNG"), "path": "image.png"}
        rows.append(row | {"image": picture if number != 1 else None})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    made = write_import(scienceqa(tmp_path, []), tmp_path / "out", ImportOptions())
    questions = list(read_questions(made["questions"]))
    assert [one.image_ids for one in questions] == [("test-0-0",), (), ("test-0-2",)]
    assert ImageStore(made["images"]).read_bytes("test-0-2") == make_picture(2, "PNG")


def test_mmmu_as_parquet_of_two_subjects(tmp_path: Path, make_picture: Make) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    home = tmp_path / "in"
    for subject in ("Art", "Math"):
        rows = [
            {
                "id": f"validation_{subject}_1",
                "question": "What is in <image 1> and <image 2>?",
                "options": "['a cat', \"a dog's\", 'a <image 2>']",
                "answer": "B",
                "question_type": "multiple-choice",
                "subfield": "x",
                "image_1": {"bytes": make_picture(1, "PNG"), "path": "a.png"},
                "image_2": {"bytes": make_picture(2, "PNG"), "path": "b.png"},
            },
            {
                "id": f"validation_{subject}_2",
                "question": "How much?",
                "options": "[]",
                "answer": "['2.5', '2.50']",
                "question_type": "open",
                "subfield": "y",
                "image_1": {"bytes": make_picture(3, "PNG"), "path": "c.png"},
                "image_2": None,
            },
        ]
        (home / subject).mkdir(parents=True)
        fields = {name: pa.string() for name in rows[0] if not name.startswith("image")}
        schema = pa.schema({**fields, "image_1": kind, "image_2": kind})
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, home / subject / "validation-00000-of-00001.parquet")
        pq.write_table(table, home / subject / "dev-00000-of-00001.parquet")
    source = mmmu(home, [])
    made = write_import(source, tmp_path / "out", ImportOptions(protocol="mmmu_val", subset=True))
    questions = {one.question_id: one for one in read_questions(made["questions"])}
    assert len(questions) == 4
    first = questions["validation_Math_1"]
    assert first.choices == ("a cat", "a dog's", "a <image 2>")
    assert (first.answers, first.image_ids) == (
        ("B",),
        ("validation_Math_1-1", "validation_Math_1-2"),
    )
    assert questions["validation_Art_2"].answers == ("2.5", "2.50")
    assert questions["validation_Art_2"].choices == ()
    store = ImageStore(made["images"])
    assert len(store) == 6
    assert store.read_bytes("validation_Art_1-2") == make_picture(2, "PNG")
    assert made["questions"].manifest["notes"]["protocol"] == (
        "mmmu_val (subset: 4 of 900 questions)"
    )
    with pytest.raises(DataError, match="4 files .* 'test'"):
        mmmu(home, [], split="test")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("choices", value) for value in ("ab", {"a": 1}, ["a", None])),
        *(("answer", value) for value in (0.5, True, float("inf"), [0])),
        *(("question", value) for value in (None, " ", ["?"])),
    ],
)
def test_fields_of_scienceqa_of_another_type_are_not_made_texts(
    tmp_path: Path, key: str, value: Any
) -> None:
    good = {"question": "?", "choices": ["a", 2], "answer": 1.0, "split": "test"}
    (tmp_path / "p.json").write_text(json.dumps({"1": good, "2": good | {key: value}}))
    options = ImportOptions(limit_quarantine=1.0)
    made = import_data("scienceqa", {"source": tmp_path / "p.json"}, tmp_path / "out", options)
    assert made["questions"].counts == {"questions": 1, "quarantined": 1}
    (question,) = read_questions(made["questions"])
    assert (question.choices, question.answers) == (("a", "2"), ("B",))


def test_groups_of_another_type_are_none() -> None:
    odd = {"subject": ["natural science"], "grade": {"a": 1}, "hint": "", "image": None}
    assert groups_of(odd) == ("NO",)
