"""Long-CLIP's loss against the paper's rules written another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from gmail_align.training.losses import long_short_losses, principal_part


def long_short_loss(*given, **options):
    """Return the means of both halves and of their sum."""
    losses = long_short_losses(*given, **options)
    return {name: values.mean() for name, values in losses.items()}


def test_the_principal_part_is_that_of_an_eigendecomposition() -> None:
    features = torch.randn(12, 7, generator=torch.Generator().manual_seed(1))
    unit = normalize(features, dim=-1).double().numpy()
    centred = unit - unit.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    for count in (1, 3, 7):
        best = axes[:, -count:]
        expected = centred @ best @ best.T + unit.mean(0)
        assert np.abs(principal_part(features, count).numpy() - expected).max() < 1e-5
    assert torch.allclose(principal_part(features, 7), normalize(features, dim=-1), atol=1e-5)


def test_a_batch_smaller_than_the_dimension_has_finite_gradients() -> None:
    features = torch.randn(4, 16, requires_grad=True)
    principal_part(features, 32).square().sum().backward()
    assert torch.isfinite(features.grad).all()


def plain_loss(images: np.ndarray, texts: np.ndarray, scale: float, smoothing: float) -> float:
    """Symmetric cross-entropy with smoothed labels, from the definition."""
    count, total = len(images), 0.0
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    for logits in (scale * images @ texts.T, scale * texts @ images.T):
        for i, row in enumerate(logits):
            label = np.full(count, smoothing / count)
            label[i] += 1 - smoothing
            log_share = row - np.log(np.exp(row).sum())
            total -= float(label @ log_share) / count / 2
    return total


def test_the_loss_is_long_plus_short() -> None:
    generator = torch.Generator().manual_seed(2)
    images, long_texts, short_texts = (torch.randn(6, 5, generator=generator) for _ in range(3))
    terms = long_short_loss(images, long_texts, short_texts, 4.0, components=2)
    unit = normalize(images, dim=-1)
    long = plain_loss(unit.numpy(), long_texts.numpy(), 4.0, 0.1)
    short = plain_loss(principal_part(images, 2).numpy(), short_texts.numpy(), 4.0, 0.1)
    assert float(terms["long"]) == pytest.approx(long, abs=1e-5)
    assert float(terms["short"]) == pytest.approx(short, abs=1e-5)
    assert float(terms["total"]) == pytest.approx(long + short, abs=1e-5)


def test_masked_pairs_leave_the_short_term() -> None:
    """Three pairs, the first two with one short caption: row 0 has row 2 as its only negative."""
    features = torch.eye(3)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    terms = long_short_loss(features, features, features, 1.0, smoothing=0.0, same=same)
    e = np.e
    expected = (2 * np.log((e + 1) / e) + np.log((e + 2) / e)) / 3
    assert float(terms["short"]) == pytest.approx(expected, abs=1e-6)


def test_masked_pairs_have_no_part_of_a_smoothed_label() -> None:
    """With pairs 0 and 1 masked, row 0 is the loss of the columns 0 and 2 alone."""
    generator = torch.Generator().manual_seed(3)
    images, long_texts, short_texts = (torch.randn(3, 5, generator=generator) for _ in range(3))
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    result = long_short_loss(images, long_texts, short_texts, 4.0, same_long=same)["long"]
    table = 4.0 * normalize(images, dim=-1) @ normalize(long_texts, dim=-1).T
    losses = []
    for logits in (table, table.T):
        for row, columns in ((0, [0, 2]), (1, [1, 2]), (2, [0, 1, 2])):
            kept, label = logits[row, columns][None], torch.tensor([columns.index(row)])
            losses.append(torch.nn.functional.cross_entropy(kept, label, label_smoothing=0.1))
    assert float(result) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_directions_without_variance_have_no_gradient() -> None:
    """Four images span three directions; the fourth axis of the decomposition is any other."""
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(5)).requires_grad_()
    weights = torch.randn(4, 16, generator=torch.Generator().manual_seed(6))
    gradients = []
    for noise in (0.0, 1e-7):
        result = principal_part(features + noise * weights.flip(0), 32)
        gradients.append(torch.autograd.grad((result * weights).sum(), features)[0])
    assert torch.allclose(*gradients, atol=1e-4)
