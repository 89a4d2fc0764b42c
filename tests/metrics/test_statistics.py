from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import sem
from scipy.stats import t as student

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import bootstrap_mean, resample_weights
from gmail_align.metrics.ngrams import bleu_counts, corpus_bleu
from gmail_align.metrics.statistics import (
    Column,
    differences,
    estimates,
    mean_column,
    over_runs,
)
from worlds.scoring import per_item


def test_a_mean_is_estimated_as_by_the_plain_bootstrap():
    values = np.random.default_rng(0).normal(size=300)
    result = estimates({"m": mean_column(values)}, resamples=4000)["m"]
    plain = bootstrap_mean(values, resamples=4000)
    assert (result.value, result.n) == (pytest.approx(values.mean()), 300)
    assert [result.low, result.high] == pytest.approx([plain.low, plain.high], abs=0.01)


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=300)
    a, b = hard + 0.1 + 0.05 * rng.normal(size=300), hard
    result = differences({"m": mean_column(a)}, {"m": mean_column(b), "n": mean_column(b)})
    plain = bootstrap_mean(a - b)
    assert list(result) == ["m"]
    assert [result["m"].low, result["m"].high] == pytest.approx([plain.low, plain.high], abs=0.003)
    assert result["m"].low > 0


def test_bleu_of_a_resample_is_bleu_of_the_captions_drawn():
    captions = ["a b c d e", "a b x d e", "q r s t", "a b c d"]
    references = [["a b c d e f"], ["a b c d e"], ["q r s t u"], ["z y x w"]]
    counts = bleu_counts(captions, references)
    weights = resample_weights(np.random.default_rng(0), 20, 4)
    for row, value in zip(weights.astype(int), Column("bleu4", counts).on(weights), strict=True):
        drawn = np.repeat(np.arange(4), row)
        again = bleu_counts([captions[i] for i in drawn], [references[i] for i in drawn])
        assert value == pytest.approx(corpus_bleu(again.sum(0, keepdims=True))[0, 3])


def test_items_without_a_value_are_left_out_of_a_mean():
    column = mean_column([1.0, 0.0, 3.0], [1, 0, 1])
    assert column.value == 2
    assert np.isnan(per_item(column)[1])
    assert estimates({"m": column})["m"].low >= 1


def test_columns_of_different_length_do_not_mix():
    with pytest.raises(UserError, match=r"\[2, 3\] items"):
        estimates({"a": mean_column([1, 2]), "b": mean_column([1, 2, 3])})
    assert estimates({}) == {}


def test_over_runs_resamples_items_and_runs() -> None:
    """Runs that differ widen the interval; runs that are the same leave that of one run."""
    rng = np.random.default_rng(0)
    one = {"hits": mean_column(rng.random(60) < 0.5)}
    other = {"hits": mean_column(rng.random(60) < 0.9)}
    (alone,) = estimates(one).values()
    (same,) = over_runs([one, one, one]).values()
    assert same.value == pytest.approx(alone.value)
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    (both,) = over_runs([one, other]).values()
    assert both.value == pytest.approx((one["hits"].value + other["hits"].value) / 2)
    assert both.high - both.low > 1.5 * (same.high - same.low)


def test_the_interval_over_few_runs_is_that_of_student() -> None:
    """Where items say the same, runs alone decide: the truth is scipy's interval of a mean."""
    values = [0.2, 0.5, 0.45, 0.8, 0.6]
    runs = [{"m": mean_column([value] * 30)} for value in values]
    (ours,) = over_runs(runs, resamples=20_000).values()
    low, high = student.interval(0.95, 4, np.mean(values), sem(values))
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize("count", [3, 5])
def test_intervals_hold_the_truth_in_95_of_100_worlds(count: int) -> None:
    """Runs and items both vary; without the widening, 3 runs hold it in 83 of 100."""
    rng, worlds, held = np.random.default_rng(7), 400, 0
    for _ in range(worlds):
        items = rng.normal(0, 1, 80)
        runs = [
            {"m": mean_column(items + rng.normal(0, 0.5) + rng.normal(0, 1, 80))}
            for _ in range(count)
        ]
        (ours,) = over_runs(runs, resamples=200, seed=1).values()
        held += ours.low <= 0 <= ours.high
    assert 0.92 <= held / worlds <= 0.99


def test_over_runs_pairs_two_rows() -> None:
    rng = np.random.default_rng(1)
    runs = [rng.random(50) for _ in range(3)]
    first = [{"m": mean_column(run + 0.1), "own": mean_column(run)} for run in runs]
    second = [{"m": mean_column(run)} for run in runs]
    result = over_runs(first, second)
    assert list(result) == ["m"]
    assert (result["m"].value, result["m"].low, result["m"].high) == pytest.approx((0.1, 0.1, 0.1))
