from __future__ import annotations

import numpy as np
import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics.class_accuracy import accuracy_estimates, class_weights, zeroshot_hits


def estimates(images, labels, classes):
    hits = zeroshot_hits(images, labels, classes).numpy()
    return accuracy_estimates(hits, labels.numpy())


def test_class_weights_by_loops():
    torch.manual_seed(0)
    features = torch.randn(3, 4, 5)
    weights = class_weights(features)
    for row, prompts in zip(weights.numpy(), features.numpy(), strict=True):
        mean = np.mean([prompt / np.linalg.norm(prompt) for prompt in prompts], axis=0)
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_metrics_are_accuracy_and_balanced_accuracy():
    metrics = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(0)
    labels = torch.tensor([0] * 60 + [1] * 25 + [2] * 10 + [4] * 5)  # class 3 has no image
    classes = torch.randn(5, 8)
    images = classes[labels] + 1.2 * torch.randn(100, 8)
    result = estimates(images, labels, classes)
    unit = torch.nn.functional.normalize
    predicted = (unit(images) @ unit(classes).T).argmax(1)
    balanced = np.mean([(predicted[labels == c] == c).double().mean() for c in (0, 1, 2, 4)])
    assert result["accuracy"].value == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert result["class_mean"].value == pytest.approx(balanced)
    for one in result.values():
        assert one.low < one.value < one.high and one.n == 100
    rare, common = result["class_mean"], result["accuracy"]
    assert rare.high - rare.low > common.high - common.low


def test_class_mean_interval_is_that_of_a_loop():
    hits = np.array([1.0, 0, 1, 1, 0, 1])
    labels = np.array([0, 0, 0, 0, 1, 1])
    images = torch.tensor([[hit, 1 - hit] for hit in np.where(labels == 0, hits, 1 - hits)])
    result = estimates(images.float(), torch.from_numpy(labels), torch.eye(2))
    rng, means = np.random.default_rng(0), []
    draws = rng.integers(6, size=(1000, 6))
    for drawn in draws:
        kept = [
            hits[drawn][labels[drawn] == c].mean() for c in (0, 1) if (labels[drawn] == c).any()
        ]
        means.append(np.mean(kept))
    assert result["class_mean"].value == pytest.approx((0.75 + 0.5) / 2)
    assert [result["class_mean"].low, result["class_mean"].high] == pytest.approx(
        np.percentile(means, [2.5, 97.5])
    )


def test_a_class_name_that_occurs_twice_gets_half():
    classes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    hits = zeroshot_hits(torch.tensor([[2.0, 0.1], [0.1, 2.0]]), torch.tensor([1, 2]), classes)
    assert hits.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_model_scores_chance(value):
    labels = torch.arange(50) % 5
    result = estimates(torch.full((50, 7), value), labels, torch.ones(5, 7))
    assert [one.value for one in result.values()] == pytest.approx([0.2, 0.2])


def test_refuses():
    with pytest.raises(UserError, match=r"outside 0\.\.1"):
        estimates(torch.eye(2), torch.tensor([0, 2]), torch.eye(2))
    with pytest.raises(UserError, match="1 of 4 rows of prompts"):
        class_weights(torch.tensor([[[1.0], [2.0]], [[3.0], [torch.nan]]]))
