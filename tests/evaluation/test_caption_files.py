from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmail_align.errors import DataError, UserError
from gmail_align.evaluation.caption_files import (
    CaptionOptions,
    captions_of_files,
    read_predictions,
    read_references,
)

KEYS = {"metrics", "intervals", "n", "protocol", "unavailable", "seconds"}


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


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


def test_captions_from_coco_files(tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    references = write(tmp_path / "coco.json", ANNOTATIONS)
    results = write(tmp_path / "results.json", RESULTS)
    metrics = ("BLEU1", "ROUGE_L", "SPICE")
    found = captions_of_files(results, references, CaptionOptions(metrics))[0]
    assert set(found) == KEYS
    assert found["metrics"]["ROUGE_L"] == pytest.approx(1)
    assert found["n"] == {"images": 2, "references": 3}
    assert set(found["unavailable"]) == {"SPICE"}
    part = write(tmp_path / "part.json", RESULTS[:1])
    with pytest.raises(UserError, match="no prediction for 1 image: 1"):
        captions_of_files(part, references, CaptionOptions(metrics))
    some = captions_of_files(part, references, CaptionOptions(metrics, partial=True))[0]
    assert some["n"] == {"images": 1, "references": 1}


def test_predictions_are_read_in_their_three_shapes(tmp_path: Path) -> None:
    rows = [{"image_id": "1", "text": "a"}, {"image_id": "2", "text": "b"}]
    lines = write(tmp_path / "predictions.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    coco = write(tmp_path / "coco.json", [{"image_id": 1, "caption": "a"}])
    assert read_predictions(lines) == read_predictions(tmp_path) == {"1": "a", "2": "b"}
    assert read_predictions(coco) == {"1": "a"}
    for number, said in enumerate(
        (
            [{"image_id": 1.0, "text": "a"}],
            {"1": "a"},
            '{"image_id": 1, "caption": "a"}',
            '{"image_id": 1, "caption": "a"}\n{"image_id": 2, "text": "b"}',
        )
    ):
        assert read_predictions(write(tmp_path / f"{number}.json", said))["1"] == "a"
    separated = json.dumps({"image_id": 1, "text": "a\u2028b"}, ensure_ascii=False)
    assert read_predictions(write(tmp_path / "separated.jsonl", separated)) == {"1": "a\u2028b"}


def test_bad_predictions_are_refused(tmp_path: Path) -> None:
    twice = write(tmp_path / "twice.json", [*RESULTS, RESULTS[0]])
    with pytest.raises(UserError, match="more than one caption for 1 image: 2"):
        read_predictions(twice)
    for number, (text, message) in enumerate(
        (
            ('[{"caption": "a"}]', "entry 0 of .* lacks an image_id or a caption"),
            ('[{"image_id": 1, "caption": 3}]', "lacks an image_id or a caption"),
            ('[{"image_id": true, "caption": "a"}]', "lacks an image_id"),
            ("[3]", "lacks an image_id"),
            ('[{"image_id": 1.5, "caption": "a"}]', "lacks an image_id"),
            ('{"annotations": [1]}', "holds no predictions .these are annotations.: give COCO"),
            ('{"1": "a", "1": "b"}', "'1' more than once"),
            ('"a"', "holds no predictions: give COCO results"),
            ("{broken", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
        )
    ):
        with pytest.raises(DataError, match=message):
            read_predictions(write(tmp_path / f"{number}.json", text))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_predictions(tmp_path / "bytes.json")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_predictions(tmp_path / "absent.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(3 << 30)  # takes no room on the disk
    with pytest.raises(DataError, match="3.2 GB"):
        read_predictions(tmp_path / "huge.json")


def test_bad_references_are_refused(tmp_path: Path) -> None:
    again = {"annotations": [*ANNOTATIONS["annotations"], ANNOTATIONS["annotations"][0]]}
    for number, (value, message) in enumerate(
        (
            ([], "holds no 'annotations'"),
            ({"annotations": []}, "holds no 'annotations'"),
            ({"annotations": [{"image_id": 1, "caption": 2}]}, "entry 0 of .* lacks"),
            ({"annotations": [{"image_id": 1, "bbox": []}]}, "annotations without captions"),
            (RESULTS, "looks like predictions"),
            ({"images": [{"sentences": []}]}, "Karpathy"),
            (again, "1 annotation ids twice"),
        )
    ):
        with pytest.raises(DataError, match=message):
            read_references(write(tmp_path / f"{number}.json", value))


def test_empty_captions_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    references = write(tmp_path / "coco.json", ANNOTATIONS)
    empty = write(tmp_path / "empty.json", [RESULTS[0], {"image_id": 1, "caption": " "}])
    with pytest.raises(UserError, match="an empty prediction for 1 image: 1"):
        captions_of_files(empty, references)
