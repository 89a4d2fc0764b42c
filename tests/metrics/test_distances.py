from __future__ import annotations

import numpy as np
import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics import distances
from gmail_align.metrics.distances import (
    cmmd,
    cmmd_influence,
    distance_estimate,
    frechet_distance,
    frechet_influence,
)


def two_sets() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(50, 6), 0.7 * torch.randn(40, 6) @ torch.randn(6, 6) + 0.4


def test_frechet_distance_by_the_eigenvalues_of_the_product():
    a, b = (x.double().numpy() for x in two_sets())
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second) - 2 * root
    assert frechet_distance(*two_sets()) == pytest.approx(expected)


def test_frechet_distance_by_scipys_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (x.double().numpy() for x in two_sets())
    first, second = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(first @ second).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(*two_sets()) == pytest.approx(expected)
    assert frechet_influence(*two_sets()).value == pytest.approx(expected)


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


def drawn(rng, paired):
    """Two correlated (paired) or unrelated sets, a shift and a scale apart."""
    a = rng.standard_normal((150, 3))
    b = 0.8 * a + 0.6 * rng.standard_normal((150, 3)) if paired else rng.standard_normal((150, 3))
    return torch.from_numpy(a + 1), torch.from_numpy(b * [1.0, 1.5, 2.0])


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("influence", [cmmd_influence, frechet_influence])
def test_the_interval_is_as_wide_as_draws_scatter(influence, paired):
    rng = np.random.default_rng(0)
    owner = np.arange(150) if paired else None
    result = [distance_estimate(influence(*drawn(rng, paired)), owner) for _ in range(80)]
    scatter = np.std([one.value for one in result])
    width = np.mean([(one.high - one.low) / (2 * 1.96) for one in result])
    assert width == pytest.approx(scatter, rel=0.25)
    assert all(one.low <= one.value <= one.high and one.n == 150 for one in result)


def test_influence_is_a_derivative():
    a, b = drawn(np.random.default_rng(1), False)
    result, copies = frechet_influence(a, b), 400
    heavier = torch.cat([a.repeat(copies, 1), a[7:8]])  # one more copy of row 7
    lighter = a.repeat(copies, 1)
    many = b.repeat(copies, 1)
    moved = frechet_distance(heavier, many) - frechet_distance(lighter, many)
    assert moved * len(heavier) == pytest.approx(float(result.first[7]), rel=0.02)


def test_pairs_of_one_group_count_once():
    a, b = drawn(np.random.default_rng(2), True)
    alone = distance_estimate(cmmd_influence(a, b), np.arange(150))
    twice = cmmd_influence(a.repeat(2, 1), b.repeat(2, 1))
    together = distance_estimate(twice, np.tile(np.arange(150), 2))
    assert together.n == 150
    assert together.high == pytest.approx(alone.high)


def test_too_few_rows_have_no_influence():
    a = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_influence(a, a) is None


def test_refuses():
    with pytest.raises(UserError, match="at least two rows"):
        frechet_distance(torch.ones(1, 2), torch.ones(3, 2))
    with pytest.raises(UserError, match="NaN"):
        cmmd(torch.full((2, 2), torch.nan), torch.ones(3, 2))
