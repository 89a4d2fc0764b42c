from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmail_align.data.labels import Labels, open_labels
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ArtifactError, DataError
from gmail_align.evaluation.zeroshot import (
    ClassFeatures,
    embed_classes,
    evaluate_zeroshot,
    read_class_features,
)

from .conftest import MakeFeatures, SaveArray

PROMPTS = torch.tensor([[[1.0, 0], [1, 0.2]], [[0, 5], [0.2, 1]]])


def test_the_prompts_of_a_class_are_averaged(make_features: MakeFeatures, tmp_path: Path) -> None:
    images = make_features("images", list("abc"), torch.tensor([[1.0, 0], [0, 1], [0.2, 1]]))
    labels = Labels({"c": "dog", "b": "cat", "a": "cat"})
    classes = ClassFeatures(["cat", "dog"], PROMPTS)
    result = evaluate_zeroshot(images, labels, classes, tmp_path / "out", protocol="toy")
    assert result.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert result.metrics["class_mean"].value == pytest.approx(0.75)
    assert result.n == {"images": 3, "classes": 2}
    assert set(result.fingerprints) == {"images", "labels", "classes"}
    other = ClassFeatures(["cat", "dog"], PROMPTS + 1)
    with pytest.raises(ArtifactError, match="classes"):
        evaluate_zeroshot(images, labels, other, tmp_path / "out", protocol="toy")


def test_files_with_and_without_prompts(save_array: SaveArray) -> None:
    images = save_array("i.npy", [[1.0, 0], [0, 1], [0, 1]])
    labels = open_labels(save_array("y.npy", [0, 1, 0]))
    flat = evaluate_zeroshot(images, labels, read_class_features(save_array("c.npy", np.eye(2))))
    deep = read_class_features(save_array("p.npy", np.eye(2)[:, None]))
    assert flat.metrics == evaluate_zeroshot(images, labels, deep).metrics
    assert flat.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert flat.n == {"images": 3, "classes": 2}
    short = open_labels(save_array("s.npy", [0, 1]))
    with pytest.raises(DataError, match="2 labels"):
        evaluate_zeroshot(images, short, deep)


def test_unknown_images_and_classes_are_refused(make_features: MakeFeatures) -> None:
    images = make_features("images", ["a"], torch.eye(2)[:1])
    classes = ClassFeatures(["cat", "dog"], torch.eye(2)[:, None])
    with pytest.raises(DataError, match="'x'"):
        evaluate_zeroshot(images, Labels({"x": "cat"}), classes)
    with pytest.raises(DataError, match="'cow'"):
        evaluate_zeroshot(images, Labels({"a": "cow"}), classes)


def test_class_features_of_another_encoder_are_refused(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    images = make_features("images", ["a"], torch.eye(2)[:1])
    classes = ClassFeatures(["cat"], torch.eye(2)[:1, None], {"encoder": "siglip"})
    with pytest.raises(DataError, match="siglip"):
        evaluate_zeroshot(images, Labels({"a": "cat"}), classes, tmp_path / "out")


@pytest.fixture(scope="module")
def adapted() -> GmailEncoder:
    """An encoder whose text tower says something else than the frozen one."""
    from gmail_align.encoders.config import LoraSettings

    lora = LoraSettings(towers="both")
    encoder = GmailEncoder.from_clip(model_path("tabletop", "clip"), lora=lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def test_prompts_take_the_route_of_the_images(
    adapted: GmailEncoder, make_features: MakeFeatures
) -> None:
    from gmail_align.encoders.route import Route

    def features(route: Route, **more: Any) -> Any:
        return make_features(
            f"images-{route}-{len(more)}",
            ["a"],
            torch.ones(1, adapted.dim),
            encoder=adapted.base_fingerprint,
            weights=adapted.route_fingerprint(route),
            route=str(route),
            **more,
        )

    prompts = {"red": ["a red ball"], "blue": ["a blue cube"]}
    result = {r: embed_classes(adapted, prompts, features(r)) for r in (Route.FROZEN, Route.REAL)}
    for route, classes in result.items():
        texts = adapted.encode_texts([own for (own,) in prompts.values()], str(route))
        assert torch.allclose(classes.prompts[:, 0], texts, atol=1e-5)
        assert classes.made_with["weights"] == adapted.text_fingerprint(route)
    assert not torch.allclose(result[Route.FROZEN].prompts, result[Route.REAL].prompts)
    with pytest.raises(DataError, match="other weights"):
        embed_classes(
            adapted, prompts, make_features("other", ["a"], torch.eye(2)[:1], weights="w")
        )
