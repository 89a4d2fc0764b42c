"""Class measures against loops over whole cosine matrices, and scikit-learn's neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics.class_gap import class_gap, nearest_is_of_class, text_recall


def sets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=rng)
    first, second = torch.arange(60) % 3, torch.arange(45) % 3
    real = centres[first] + torch.randn(60, 8, generator=rng)
    return real, centres[second] + torch.randn(45, 8, generator=rng) + 0.3, first, second


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    x, y = (side.double().numpy() for side in (a, b))
    return (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T


def test_values_are_those_of_loops():
    real, made, first, second = sets()
    result = class_gap(real, made, first, second, resamples=50)
    across, within = cosines(made, real), cosines(real, real)
    same, other, hits = [], [], []
    for row, label in enumerate(second):
        own = (first == label).numpy()
        same.append(across[row][own].mean())
        other.append(across[row][~own].mean())
        hits.append(own[across[row].argmax()])
    assert result["class_cosine"].value == pytest.approx(np.mean(same), abs=1e-6)
    assert result["class_margin"].value == pytest.approx(np.mean(same) - np.mean(other), abs=1e-6)
    assert result["class_r1"].value == pytest.approx(np.mean(hits))
    same, hits = [], []
    for row, label in enumerate(first):
        rest = np.arange(60) != row
        own = (first == label).numpy() & rest
        same.append(within[row][own].mean())
        hits.append(bool(own[np.where(rest, within[row], -9).argmax()]))
    assert result["real_class_cosine"].value == pytest.approx(np.mean(same), abs=1e-6)
    assert result["real_class_r1"].value == pytest.approx(np.mean(hits))
    assert all(one.low <= one.value <= one.high for one in result.values())


def test_nearest_neighbours_are_scikit_learns():
    neighbors = pytest.importorskip("sklearn.neighbors")
    real, made, first, second = sets()
    unit = [torch.nn.functional.normalize(side, dim=-1) for side in (made, real)]
    hits = nearest_is_of_class(*unit, second, first)
    model = neighbors.KNeighborsClassifier(1, metric="cosine").fit(real.numpy(), first.numpy())
    assert hits.numpy() == pytest.approx((model.predict(made.numpy()) == second.numpy()) * 1.0)


def test_ties_are_broken_at_random():
    equal = torch.ones(4, 3) / 3**0.5
    labels = torch.tensor([0, 0, 0, 1])
    assert nearest_is_of_class(equal, equal, labels, labels).tolist() == [0.75, 0.75, 0.75, 0.25]
    alone = nearest_is_of_class(equal, equal, labels, labels, itself=True)
    assert alone.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])


def test_a_real_image_that_is_alone_in_its_class_is_left_out():
    real, made, first, second = sets()
    first = first.clone()
    first[0] = 3
    result = class_gap(real, made, first, second, resamples=20)
    assert result["real_class_cosine"].n == 59
    strange = torch.full_like(second, 4)
    with pytest.raises(UserError, match="fewer than two classes"):
        class_gap(real, made, first, strange)


def test_text_recall_is_accuracy():
    images, texts = torch.eye(3)[[0, 1, 2, 0]], torch.eye(3)
    assert text_recall(images, texts, torch.tensor([0, 1, 2, 1])).value == pytest.approx(0.75)
    with pytest.raises(UserError, match="outside"):
        text_recall(images, texts, torch.tensor([0, 1, 2, 3]))
