"""Predictions and references, in every form that people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmail_align.data.model_outputs import open_predictions, open_responses
from gmail_align.data.references import first_captions, open_references
from gmail_align.errors import DataError

ANNOTATIONS = {
    "images": [{"id": 1}, {"id": 2}],
    "annotations": [
        {"id": 10, "image_id": 1, "caption": "a red ball on the floor"},
        {"id": 11, "image_id": 2, "caption": "two blue cubes"},
        {"id": 12, "image_id": 1, "caption": "a ball"},
    ],
}
RESULTS = [
    {"image_id": 2, "caption": "two blue cubes"},
    {"image_id": 1, "caption": "a red ball on the floor"},
]


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_predictions_are_read_in_their_three_shapes(tmp_path: Path) -> None:
    rows = [{"image_id": "1", "text": "a"}, {"image_id": "2", "text": "b"}]
    lines = write(tmp_path / "predictions.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    coco = write(tmp_path / "coco.json", [{"image_id": 1, "caption": "a"}])
    assert open_predictions(lines).texts == open_predictions(tmp_path).texts
    assert open_predictions(lines).texts == {"1": "a", "2": "b"}
    assert open_predictions(coco).texts == {"1": "a"}
    for number, said in enumerate(
        (
            [{"image_id": 1.0, "text": "a"}],
            {"1": "a"},
            '{"image_id": 1, "caption": "a"}',
            '{"image_id": "1", "caption": "a"}',
            '{"image_id": 1, "caption": "a"}\n{"image_id": 2, "text": "b"}',
        )
    ):
        assert open_predictions(write(tmp_path / f"{number}.json", said)).texts["1"] == "a"
    separated = json.dumps({"image_id": 1, "text": "a\u2028b"}, ensure_ascii=False)
    result = open_predictions(write(tmp_path / "separated.jsonl", separated))
    assert result.texts == {"1": "a\u2028b"}


def test_bad_predictions_are_refused(tmp_path: Path) -> None:
    texts = (
        [*RESULTS, RESULTS[0]],
        [RESULTS[0], {"image_id": 1, "caption": " "}],
        '[{"caption": "a"}]',
        '[{"image_id": 1, "caption": 3}]',
        '[{"image_id": true, "caption": "a"}]',
        "[3]",
        '[{"image_id": 1.5, "caption": "a"}]',
        '[{"image_id": 1, "caption": "half \\ud800"}]',
        '{"annotations": [1]}',
        '{"1": "a", "1": "b"}',
        '"a"',
        "{broken",
        "[" * 100_000,
    )
    for number, text in enumerate(texts):
        with pytest.raises(DataError, match=rf"{number}\.json"):
            open_predictions(write(tmp_path / f"{number}.json", text))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(3 << 30)  # takes no room on the disk
    for name in ("bytes", "absent", "huge"):
        with pytest.raises(DataError, match=name):
            open_predictions(tmp_path / f"{name}.json")


def test_a_whole_character_beyond_the_plane_is_not_half_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "said.json", '[{"image_id": 1, "caption": "\\ud83d\\ude00"}]')
    assert open_predictions(path).texts == {"1": "\U0001f600"}


def test_references_of_coco(tmp_path: Path) -> None:
    result = open_references(write(tmp_path / "coco.json", ANNOTATIONS))
    assert result.by_image() == {
        "1": ["a red ball on the floor", "a ball"],
        "2": ["two blue cubes"],
    }


def test_bad_references_are_refused(tmp_path: Path) -> None:
    again = {"annotations": [*ANNOTATIONS["annotations"], ANNOTATIONS["annotations"][0]]}
    for number, value in enumerate(
        (
            [],
            {"annotations": []},
            {"annotations": [{"image_id": 1, "caption": 2}]},
            {"annotations": [{"image_id": 1, "bbox": []}]},
            RESULTS,
            {"images": [{"sentences": []}]},
            again,
        )
    ):
        with pytest.raises(DataError, match=rf"{number}\.json"):
            open_references(write(tmp_path / f"{number}.json", value))


def test_bad_responses_are_refused(tmp_path: Path) -> None:
    for number, value in enumerate(
        (
            {"1": 1},
            '{"1": "A", "1": "B"}',
            [{"id": 1, "text": "A"}, {"id": 1, "text": "B"}],
            [{"id": 1}],
            "7",
            '{"1": "A"',
        )
    ):
        with pytest.raises(DataError, match=rf"{number}\.json"):
            open_responses(write(tmp_path / f"{number}.json", value))


def test_the_first_captions_of_an_image_take_part() -> None:
    rows = [(image, f"{image}-{number}") for image in "ab" for number in range(7)]
    assert first_captions(rows, None) == rows
    kept = first_captions(rows, 5)
    assert kept == [(image, f"{image}-{number}") for image in "ab" for number in range(5)]
