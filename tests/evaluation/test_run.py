from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmail_align.artifacts import Artifact
from gmail_align.errors import ArtifactError, DataError, UserError
from gmail_align.evaluation.result import read_result
from gmail_align.evaluation.run import evaluate_retrieval, evaluate_zeroshot

from .conftest import MakeFeatures


def retrieval(make: MakeFeatures, out: Path) -> tuple[Artifact, Artifact, Artifact]:
    """Three images, one of them not asked for, and four captions, one nearer to the wrong image."""
    images = make("images", ["z", "x", "y"], torch.eye(3))
    texts = torch.tensor([[0, 1, 0], [0, 1, 0.1], [0, 0, 1], [0, 0.9, 0.5]], dtype=torch.float)
    captions = [("c0", "x"), ("c1", "x"), ("c2", "y"), ("c3", "y")]
    read = make("texts", ["c0", "c1", "c2", "c3"], texts)
    return images, read, evaluate_retrieval(images, read, captions, out, protocol="toy", seed=3)


def test_retrieval_ranks_the_images_of_the_captions_alone(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    images, texts, result = retrieval(make_features, tmp_path / "out")
    body = read_result(result)
    values = {name: entry["value"] for name, entry in body["metrics"].items()}
    assert values["i2t_r1"] == 1
    assert values["t2i_r1"] == 0.75
    assert values["t2i_r5"] == 1
    assert body["metrics"]["t2i_r1"]["n"] == 2
    assert (body["protocol"], body["seed"], body["unavailable"]) == ("toy", 3, {})
    assert body["n"] == {"images": 2, "texts": 4}
    assert body["fingerprints"] == {"images": images.fingerprint, "texts": texts.fingerprint}
    assert body["features"]["images"]["route"] == "real"


def test_a_finished_result_is_kept(make_features: MakeFeatures, tmp_path: Path) -> None:
    images, texts, result = retrieval(make_features, tmp_path / "out")
    captions = [("c0", "x"), ("c1", "x"), ("c2", "y"), ("c3", "y")]
    again = evaluate_retrieval(images, texts, captions, result.folder, protocol="toy", seed=3)
    assert again.manifest == result.manifest
    with pytest.raises(ArtifactError, match="protocol"):
        evaluate_retrieval(images, texts, captions, result.folder, protocol="other", seed=3)


def test_retrieval_refuses_what_is_missing_or_comes_twice(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    images = make_features("images", ["x"], torch.eye(3)[:1])
    texts = make_features("texts", ["c"], torch.eye(3)[:1])
    for name, captions, message in (
        ("image", [("c", "nowhere")], "1 of 1 ids have no features"),
        ("text", [("nothing", "x")], "1 of 1 ids have no features"),
        ("twice", [("c", "x"), ("c", "x")], "more than once"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate_retrieval(images, texts, captions, tmp_path / name, protocol="toy")
    narrow = make_features("narrow", ["c"], torch.eye(2)[:1])
    with pytest.raises(UserError, match="dimensions"):
        evaluate_retrieval(images, narrow, [("c", "x")], tmp_path / "narrow-out", protocol="toy")


def test_zero_shot_averages_the_prompts_of_a_class(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    images = make_features("images", list("abc"), torch.tensor([[1.0, 0], [0, 1], [0.2, 1]]))
    prompts = torch.tensor([[[1.0, 0], [1, 0.2]], [[0, 5], [0.2, 1]]])
    labels = {"c": 1, "b": 0, "a": 0}
    result = evaluate_zeroshot(images, labels, prompts, tmp_path / "out", protocol="toy")
    body = read_result(result)
    assert body["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert body["metrics"]["class_mean"]["value"] == pytest.approx(0.75)
    assert body["n"] == {"images": 3, "classes": 2}
    assert set(body["fingerprints"]) == {"images", "class_features"}
    with pytest.raises(ArtifactError, match="class_features"):
        evaluate_zeroshot(images, labels, prompts + 1, tmp_path / "out", protocol="toy")


def test_zero_shot_refuses_unknown_images_and_classes(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    images, prompts = make_features("images", ["a"], torch.eye(2)[:1]), torch.eye(2)[:, None]
    with pytest.raises(DataError, match="have no features"):
        evaluate_zeroshot(images, {"x": 0}, prompts, tmp_path / "a", protocol="toy")
    with pytest.raises(UserError, match="outside"):
        evaluate_zeroshot(images, {"a": 2}, prompts, tmp_path / "b", protocol="toy")
    with pytest.raises(DataError, match="no labelled images"):
        evaluate_zeroshot(images, {}, prompts, tmp_path / "c", protocol="toy")


def test_results_are_read_from_results_alone(make_features: MakeFeatures) -> None:
    with pytest.raises(ArtifactError, match="a result is needed"):
        read_result(make_features("images", ["a"], torch.eye(2)[:1]))
