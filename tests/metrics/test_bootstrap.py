from __future__ import annotations

import numpy as np
import pytest

from gmail_align.errors import UserError
from gmail_align.metrics import bootstrap
from gmail_align.metrics.bootstrap import (
    Estimate,
    bootstrap_kinds,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_replicates,
    interval,
    resample_weights,
)


def test_weights_are_multinomial_counts():
    weights = resample_weights(np.random.default_rng(0), 4000, 7)
    assert (weights.sum(1) == 7).all()
    assert np.allclose(weights.mean(0), 1, atol=0.06)
    assert np.allclose(weights.var(0), 6 / 7, atol=0.08)  # n p (1 - p)


def test_weighted_mean_is_the_mean_of_the_drawn_values():
    values = np.random.default_rng(1).normal(size=9)
    weights = resample_weights(np.random.default_rng(2), 50, 9)
    drawn = [np.repeat(values, row.astype(int)).mean() for row in weights]
    replicates = bootstrap_replicates(9, lambda w: w @ values / 9, resamples=50, seed=2)
    assert np.allclose(replicates, drawn)


def test_interval_is_normal_theory_for_a_large_sample():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    result = bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert result.value == pytest.approx(values.mean()) and result.n == 2000
    assert result.value - result.low == pytest.approx(half, rel=0.1)
    assert result.high - result.value == pytest.approx(half, rel=0.1)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    result = [bootstrap_mean(rng.exponential(size=60), resamples=300) for _ in range(300)]
    assert 0.88 < np.mean([one.low <= 1 <= one.high for one in result]) < 0.98


def test_same_seed_same_interval_and_another_seed_another():
    values = np.arange(20.0)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_blocks_do_not_change_the_result(monkeypatch):
    values = np.random.default_rng(0).normal(size=64)
    whole = bootstrap_mean(values)
    monkeypatch.setattr(bootstrap, "_BLOCK", 64 * 10)
    assert bootstrap_mean(values) == whole


def test_copies_of_a_value_in_its_cluster_tell_nothing_new():
    values = np.random.default_rng(0).normal(size=40)
    single = bootstrap_mean(values)
    copied = bootstrap_mean(np.repeat(values, 5), clusters=np.repeat(np.arange(40), 5))
    unaware = bootstrap_mean(np.repeat(values, 5))
    assert copied.n == 40
    assert [copied.low, copied.high] == pytest.approx([single.low, single.high])
    assert unaware.high - unaware.low < 0.6 * (copied.high - copied.low)


def test_uneven_clusters_are_a_ratio_of_sums():
    values, clusters = np.array([1.0, 0, 0, 1, 1, 1]), np.array([5, 5, 5, 2, 9, 9])
    result = bootstrap_mean(values, clusters=clusters)
    assert result.value == pytest.approx(values.mean()) and result.n == 3
    assert result.low == pytest.approx(1 / 3) and result.high == 1


def test_columns_share_their_resamples():
    values = np.random.default_rng(0).normal(size=30)
    result = bootstrap_means({"a": values, "b": values + 1})
    assert result["b"].low - result["a"].low == pytest.approx(1)


def test_units_of_a_kind_are_drawn_as_one_by_one():
    members = np.array([500, 300, 150, 50])
    kind = np.repeat(np.arange(4), members)
    worth = np.array([0.0, 1.0, 2.0, 7.0])

    def mean(weights):
        return weights @ worth / weights.sum(1)

    together = bootstrap_kinds(kind, mean, resamples=20_000)
    apart = bootstrap_replicates(1000, lambda w: w @ worth[kind] / 1000, resamples=20_000)
    assert together.mean() == pytest.approx(worth[kind].mean(), abs=0.003)
    assert together.std() == pytest.approx(worth[kind].std() / 1000**0.5, rel=0.03)
    assert np.percentile(together, [1, 50, 99]) == pytest.approx(
        np.percentile(apart, [1, 50, 99]), abs=0.01
    )


def test_few_units_of_each_kind_are_drawn_one_by_one():
    def totals(weights):
        return weights

    drawn = bootstrap_kinds(np.array([1, 0, 2, 1]), totals, resamples=50)
    assert drawn.shape == (50, 3)
    assert (drawn.sum(1) == 4).all()
    assert drawn[:, 1].mean() == pytest.approx(2, abs=0.5)


def test_undefined_resamples_are_left_out():
    assert interval(1.0, np.array([np.nan, 1, 1]), 3) == Estimate(1.0, 1.0, 1.0, 3)
    assert np.isnan(interval(1.0, np.array([np.nan]), 3).low)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_mean([]), "0 values"),
        (lambda: bootstrap_mean([1.0, float("nan")]), "1 of 2 values"),
        (lambda: bootstrap_mean([[1.0]]), "shape"),
        (lambda: bootstrap_mean([1.0, 2.0], clusters=[1]), "1 cluster labels"),
        (lambda: bootstrap_kinds(np.array([], dtype=int), lambda w: w), "0 values"),
    ],
)
def test_refuses(call, words):
    with pytest.raises(UserError, match=words):
        call()
