"""Metrics kept as sums over items, so that any resample or pair of results can be recomputed.

A corpus metric such as BLEU, METEOR or the accuracy of a group is a function of sums over images.
Kept as one row of summands an image, it costs a matrix product to evaluate it on every resample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm as normal
from scipy.stats import t as student

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import (
    Estimate,
    Values,
    bootstrap_replicates,
    interval,
    resample_weights,
)
from gmail_align.metrics.meteor import corpus_meteor
from gmail_align.metrics.ngrams import corpus_bleu
from gmail_align.runtime import random_source


def _bleu(order: int) -> Callable[[Values], Values]:
    return lambda sums: corpus_bleu(sums)[:, order - 1]


def _ratio(sums: Values) -> Values:
    quotient: Values = sums[:, 0] / sums[:, 1]
    return quotient


STATISTICS: Mapping[str, Callable[[Values], Values]] = {
    "ratio": _ratio,
    "bleu1": _bleu(1),
    "bleu2": _bleu(2),
    "bleu3": _bleu(3),
    "bleu4": _bleu(4),
    "meteor": corpus_meteor,
}
"""Name -> function of summed rows (m, k) to values (m,)."""


@dataclass(frozen=True)
class Column:
    """What every item adds to one metric.

    Attributes:
        kind: which of `STATISTICS`.
        values: (n, k) summands, a row an item.
    """

    kind: str
    values: Values = field(repr=False)

    def on(self, weights: Values) -> Values:
        """Return the metric (rows,) on resamples given as weights (rows, n)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return STATISTICS[self.kind](weights @ self.values)

    @property
    def value(self) -> float:
        """The metric over all items."""
        return float(self.on(np.ones((1, len(self.values))))[0])


def mean_column(values: ArrayLike, counts: ArrayLike | None = None) -> Column:
    """Return the column of a mean.

    Args:
        values: a value an item; with ``counts``, the sum of an item's values.
        counts: how many values each item has; by default one.
    """
    sums = np.asarray(values, dtype=np.float64)
    sizes = np.ones_like(sums) if counts is None else np.asarray(counts, dtype=np.float64)
    return Column("ratio", np.stack([sums, sizes], axis=1))


def seed_mean(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds with its 95% interval by Student's t; one seed has none."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, float("nan"), float("nan"), n)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return Estimate(mean, mean - half, mean + half, n)


def estimates(
    columns: Mapping[str, Column], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate every metric, all over the same resamples of items.

    Raises:
        UserError: there are no items, or metrics differ in their number.
    """
    return _estimates(columns, None, resamples=resamples, seed=seed)


def differences(
    a: Mapping[str, Column], b: Mapping[str, Column], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate a - b in every metric that both have, item paired with item.

    Raises:
        UserError: there are no items, or the two have different numbers of them.
    """
    shared = {name: column for name, column in a.items() if name in b}
    return _estimates(shared, {name: b[name] for name in shared}, resamples=resamples, seed=seed)


def over_runs(
    first: Sequence[Mapping[str, Column]],
    second: Sequence[Mapping[str, Column]] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Estimate every metric of several runs on the same items, or the difference of two such rows.

    A value is the mean over runs. Its interval resamples items and, where there are several, runs
    (crossed bootstrap; Owen 2007). Of two rows, runs are paired as well as items. A bootstrap of
    few runs is too narrow, so their part is widened by :func:`few_runs`. If items did not matter,
    the interval would be that of Student's t over runs.

    Args:
        first: metric -> column, of each run.
        second: the same of the other row.
        resamples: how many resamples.
        seed: of the resampling.
    """
    names = [name for name in first[0] if second is None or name in second[0]]
    if not names:
        return {}
    items, runs = len(first[0][names[0]].values), len(first)
    rng = random_source(seed)
    of_items = resample_weights(rng, resamples, items)
    of_runs = resample_weights(rng, resamples, runs) / runs
    estimates = {}
    for name in names:
        value = float(np.mean([run[name].value for run in first]))
        columns = np.stack([run[name].on(of_items) for run in first], axis=1)
        if second is not None:
            value -= float(np.mean([run[name].value for run in second]))
            columns -= np.stack([run[name].on(of_items) for run in second], axis=1)
        middle = columns.mean(axis=1)
        apart = (columns * of_runs).sum(axis=1) - middle
        estimates[name] = interval(value, middle + few_runs(runs) * apart, items)
    return estimates


def few_runs(runs: int) -> float:
    """Return by how much a bootstrap of a mean over few runs has to be widened.

    A percentile interval takes the normal distribution's quantile and the variance with n in its
    denominator. Student's t has the larger quantile, and n - 1 (the expanded percentile interval;
    Hesterberg 2015, The American Statistician 69:4).

    Args:
        runs: How many runs, n; 1 leaves everything as it is.

    Example:
        >>> [round(few_runs(n), 2) for n in (1, 2, 3, 5, 100)]
        [1.0, 9.17, 2.69, 1.58, 1.02]
    """
    if runs < 2:
        return 1.0
    wider = student.ppf(0.975, runs - 1) / normal.ppf(0.975)
    return float(wider * (runs / (runs - 1)) ** 0.5)


def _estimates(
    first: Mapping[str, Column], second: Mapping[str, Column] | None, *, resamples: int, seed: int
) -> dict[str, Estimate]:
    sides = [first, second or {}]
    arrays = {id(one.values): one.values for side in sides for one in side.values()}
    lengths = {len(values) for values in arrays.values()}
    if len(lengths) > 1:
        raise UserError(f"metrics over {sorted(lengths)} items do not go together")
    if not lengths:
        return {}
    count = lengths.pop()
    table, places = _side_by_side(arrays)

    def statistic(weights: Values) -> Values:
        sums = weights @ table
        return np.stack([_apart(name, sums, places, first, second) for name in first], axis=1)

    replicates = bootstrap_replicates(count, statistic, resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistic(np.ones((1, count)))[0]
    return {
        name: interval(float(values[at]), replicates[:, at], count) for at, name in enumerate(first)
    }


def _side_by_side(arrays: Mapping[int, Values]) -> tuple[Values, dict[int, slice]]:
    """Join arrays, so that one matrix product sums them all; say where each went."""
    places, start = {}, 0
    for key, values in arrays.items():
        places[key] = slice(start, start + values.shape[1])
        start += values.shape[1]
    return np.concatenate(list(arrays.values()), axis=1), places


def _apart(
    name: str,
    sums: Values,
    places: Mapping[int, slice],
    first: Mapping[str, Column],
    second: Mapping[str, Column] | None,
) -> Values:
    """Evaluate a metric on summed rows, less that of the second side if there is one."""
    value = STATISTICS[first[name].kind](sums[:, places[id(first[name].values)]])
    if second is None:
        return value
    other: Values = STATISTICS[second[name].kind](sums[:, places[id(second[name].values)]])
    return value - other
