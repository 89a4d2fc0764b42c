from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gmail_align.errors import DataError, UserError
from gmail_align.evaluation.files import (
    captions_of_files,
    read_predictions,
    read_references,
    retrieval_of_files,
    zeroshot_of_files,
)

KEYS = {"metrics", "intervals", "n", "protocol", "unavailable", "seconds"}


def save(path: Path, array: object) -> Path:
    np.save(path, np.asarray(array))
    return path


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_retrieval_from_arrays(tmp_path: Path) -> None:
    images = save(tmp_path / "i.npy", np.eye(2))
    texts = save(tmp_path / "t.npy", np.array([[1, 0.1], [0.1, 1], [0, 1]], dtype=np.float16))
    found = retrieval_of_files(images, texts, save(tmp_path / "o.npy", [0, 0, 1]), protocol="toy")
    assert set(found) == KEYS
    json.dumps(found, allow_nan=False)
    assert (found["protocol"], found["n"]) == ("toy", {"images": 2, "texts": 3})
    assert found["metrics"]["i2t_r1"] == 1
    assert found["metrics"]["t2i_r1"] == pytest.approx(2 / 3)
    low, high = found["intervals"]["t2i_r1"]
    assert low <= 2 / 3 <= high


def test_zero_shot_from_arrays_with_and_without_prompts(tmp_path: Path) -> None:
    images = save(tmp_path / "i.npy", [[1.0, 0], [0, 1], [0, 1]])
    labels = save(tmp_path / "y.npy", [0, 1, 0])
    flat = zeroshot_of_files(images, labels, save(tmp_path / "c.npy", np.eye(2)))
    deep = zeroshot_of_files(images, labels, save(tmp_path / "p.npy", np.eye(2)[:, None]))
    assert set(flat) == KEYS
    assert flat["metrics"] == deep["metrics"]
    assert flat["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert flat["n"] == {"images": 3, "classes": 2}


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    good, owner = save(tmp_path / "good.npy", np.eye(3)), save(tmp_path / "owner.npy", [0, 1, 2])
    holed = np.eye(3)
    holed[1, 1] = np.inf
    np.savez(tmp_path / "many.npz", a=np.eye(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "empty.npy").write_bytes(b"")
    cases = {
        "hold NaN or infinity": (save(tmp_path / "inf.npy", holed), good, owner),
        "floats": (save(tmp_path / "ints.npy", np.eye(3, dtype=int)), good, owner),
        "archive": (tmp_path / "many.npz", good, owner),
        "Object arrays": (tmp_path / "pickle.npy", good, owner),
        "cannot be read": (tmp_path / "empty.npy", good, owner),
        "No such file": (tmp_path / "absent.npy", good, owner),
        "dimensions": (save(tmp_path / "narrow.npy", np.eye(2)), good, owner),
        "vector of integers": (good, good, save(tmp_path / "f.npy", [0.0, 1, 2])),
        "outside": (good, good, save(tmp_path / "far.npy", [0, 1, 3])),
        "integers are needed": (good, good, save(tmp_path / "few.npy", [0, 1])),
        "have no text": (good, good, save(tmp_path / "same.npy", [0, 1, 1])),
    }
    for message, (images, texts, owners) in cases.items():
        with pytest.raises(UserError, match=message):
            retrieval_of_files(images, texts, owners)
    with pytest.raises(UserError, match="outside"):
        zeroshot_of_files(good, save(tmp_path / "neg.npy", [0, 1, -1]), good)


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
    found = captions_of_files(results, references, metrics=metrics)
    assert set(found) == KEYS
    assert found["metrics"]["ROUGE_L"] == pytest.approx(1)
    assert found["n"] == {"images": 2, "references": 3}
    assert set(found["unavailable"]) == {"SPICE"}
    part = write(tmp_path / "part.json", RESULTS[:1])
    with pytest.raises(UserError, match="no prediction for 1 image: 1"):
        captions_of_files(part, references, metrics=metrics)
    some = captions_of_files(part, references, metrics=metrics, partial=True)
    assert some["n"] == {"images": 1, "references": 1}


def test_predictions_are_read_in_their_three_shapes(tmp_path: Path) -> None:
    rows = [{"image_id": "1", "text": "a"}, {"image_id": "2", "text": "b"}]
    lines = write(tmp_path / "predictions.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    coco = write(tmp_path / "coco.json", [{"image_id": 1, "caption": "a"}])
    assert read_predictions(lines) == read_predictions(tmp_path) == {"1": "a", "2": "b"}
    assert read_predictions(coco) == {"1": "a"}


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
            ("{broken", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
        )
    ):
        with pytest.raises(DataError, match=message):
            read_predictions(write(tmp_path / f"{number}.json", text))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_predictions(tmp_path / "bytes.json")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_predictions(tmp_path / "absent.json")


def test_bad_references_are_refused(tmp_path: Path) -> None:
    again = {"annotations": [*ANNOTATIONS["annotations"], ANNOTATIONS["annotations"][0]]}
    for number, (value, message) in enumerate(
        (
            ([], "holds no 'annotations'"),
            ({"annotations": []}, "holds no 'annotations'"),
            ({"annotations": [{"image_id": 1}]}, "entry 0 of .* lacks"),
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
