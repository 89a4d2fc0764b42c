from __future__ import annotations

import numpy as np
import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics import distances
from gmail_align.metrics.distances import cmmd, frechet_distance


def two_sets() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(50, 6), 0.7 * torch.randn(40, 6) @ torch.randn(6, 6) + 0.4


def test_frechet_distance_by_the_eigenvalues_of_the_product():
    a, b = (x.double().numpy() for x in two_sets())
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second) - 2 * root
    assert frechet_distance(*two_sets()) == pytest.approx(expected)


def test_frechet_distance_on_a_line():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [7.0]])  # sd sqrt 2, 2 sqrt 2
    assert frechet_distance(a, b) == pytest.approx(4**2 + 2)


def test_fewer_rows_than_dimensions_is_fine():
    a = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def reference_cmmd(a, b):
    """The published implementation's formula, in float64."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    gamma = 1 / (2 * 10**2)

    def mean(x, y):
        squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None]
        return np.exp(-gamma * (squares - 2 * x @ y.T)).mean()

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def test_cmmd_is_the_published_formula(monkeypatch):
    a, b = two_sets()
    expected = reference_cmmd(a.double().numpy(), b.double().numpy())
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(distances, "_BLOCK", 100)
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-6)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_refuses():
    with pytest.raises(UserError, match="at least two rows"):
        frechet_distance(torch.ones(1, 2), torch.ones(3, 2))
    with pytest.raises(UserError, match="NaN"):
        cmmd(torch.full((2, 2), torch.nan), torch.ones(3, 2))
