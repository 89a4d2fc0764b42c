from __future__ import annotations

import numpy as np
import pytest
import torch

from gmail_align.errors import UserError
from gmail_align.metrics.separability import _folds, probe_auc, refit_factor, weighted_auc

metrics = pytest.importorskip("sklearn.metrics")


def test_weighted_auc_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 6, 30) / 5.0, rng.integers(0, 5, 20) / 5.0
    up, down = rng.integers(0, 4, (7, 30)).astype(float), rng.integers(0, 4, (7, 20)).astype(float)
    result = weighted_auc(up, down, (high, low))
    for row in range(7):
        expected = metrics.roc_auc_score(
            [1] * 30 + [0] * 20,
            np.concatenate([high, low]),
            sample_weight=np.concatenate([up[row], down[row]]),
        )
        assert result[row] == pytest.approx(expected)


def test_equal_features_cannot_be_told_apart():
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    assert probe_auc(features, features).value == pytest.approx(0.5)


def test_one_distribution_gives_chance_as_often_as_the_interval_says():
    torch.manual_seed(0)
    result = [probe_auc(torch.randn(150, 8), torch.randn(150, 8), resamples=200) for _ in range(20)]
    assert np.mean([one.value for one in result]) == pytest.approx(0.5, abs=0.03)
    assert sum(one.low < 0.5 < one.high for one in result) >= 17


def test_two_distributions_give_one():
    torch.manual_seed(0)
    result = probe_auc(torch.randn(300, 8), torch.randn(300, 8) + 4)
    assert result.value > 0.999 and result.high <= 1 and result.n == 300


def test_refitting_five_folds_widens_by_a_half():
    assert refit_factor(5) == pytest.approx(1.5)


def test_auc_of_one_known_shift():
    """Two unit Gaussians at distance 1 give AUC = Phi(1 / sqrt 2) = 0.760."""
    torch.manual_seed(0)
    base = torch.randn(3000, 2)
    # A long constant axis keeps directions linear in the features after normalising.
    real = torch.cat([base, torch.full((3000, 1), 1000.0)], 1)
    generated = torch.cat([torch.randn(3000, 2) + torch.tensor([1.0, 0.0]), real[:, 2:]], 1)
    result = probe_auc(real, generated, resamples=200)
    assert result.low < 0.760 < result.high


def test_a_pair_and_a_group_are_never_split():
    owner = np.repeat(np.arange(10), 3)
    fold = _folds(owner, seed=0, folds=5)
    assert all(len(set(fold[owner == group])) == 1 for group in range(10))
    assert sorted(np.bincount(fold)) == [6] * 5


def test_knowing_the_pairs_does_not_help():
    """Labels that are noise within each pair: a split pair would pull the AUC away from 0.5."""
    torch.manual_seed(0)
    base = torch.randn(150, 100)
    result = probe_auc(base + 0.01 * torch.randn(150, 100), base + 0.01 * torch.randn(150, 100))
    assert 0.45 < result.value < 0.55


def test_seeded():
    torch.manual_seed(0)
    real, generated = torch.randn(40, 3), torch.randn(40, 3)
    assert probe_auc(real, generated, seed=1) == probe_auc(real, generated, seed=1)


def test_few_pairs_use_fewer_folds():
    assert probe_auc(torch.eye(3)[:2], -torch.eye(3)[:2]).n == 2


def test_refuses_one_group():
    with pytest.raises(UserError, match="at least 2 groups"):
        probe_auc(torch.eye(3), torch.eye(3), groups=torch.tensor([1, 1, 1]))
