"""Percentile bootstrap intervals, resampled by image and vectorised over resamples.

One resample of n units is a row of weights, how often each unit was drawn, so every statistic
that is a mean or a ratio of sums is a matrix product (Efron & Tibshirani 1993, chapters 6, 13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gmail_align.errors import UserError
from gmail_align.runtime import random_source

Values = NDArray[np.float64]
Statistic = Callable[[Values], Values]
"""Weights (resamples, n) -> one value, or one row of values, for each resample."""

LEVEL = 0.95
_BLOCK = 1 << 22
"""Weights held at once: 32 MB, whatever the number of images."""


@dataclass(frozen=True)
class Estimate:
    """A value, its 95% interval, and the number of independent units it was resampled over."""

    value: float
    low: float
    high: float
    n: int


def resample_weights(rng: np.random.Generator, resamples: int, count: int) -> Values:
    """Draw multinomial weights (resamples, count); each row sums to ``count``."""
    draws = rng.integers(count, size=(resamples, count))
    draws += count * np.arange(resamples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=resamples * count)
    return counts.reshape(resamples, count).astype(np.float64)


def bootstrap_replicates(
    count: int, statistic: Statistic, *, resamples: int = 1000, seed: int = 0
) -> Values:
    """Evaluate ``statistic`` on ``resamples`` resamples of ``count`` units, in blocks.

    Raises:
        UserError: there is nothing to resample.
    """
    if count < 1 or resamples < 1:
        raise UserError(f"a bootstrap of {count} values with {resamples} resamples is empty")
    rng = random_source(seed)
    block = max(1, _BLOCK // count)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([statistic(resample_weights(rng, rows, count)) for rows in sizes])


def bootstrap_kinds(
    kind: NDArray[np.intp], statistic: Statistic, *, resamples: int = 1000, seed: int = 0
) -> Values:
    """Evaluate ``statistic`` on resamples of units of which many are alike.

    Units of one kind cannot be told apart, so a resample is how many of each kind it holds. Where
    kinds are few this is drawn at once from a multinomial: the same distribution as unit by unit,
    and hundreds of times faster for hits and misses.

    Args:
        kind: (units,) the kind of each unit, 0, 1, ...
        statistic: Weights (resamples, kinds) -> values.
        resamples: how many resamples.
        seed: of the resampling.

    Raises:
        UserError: there is nothing to resample.
    """
    count = len(kind)
    if count < 1 or resamples < 1:
        raise UserError(f"a bootstrap of {count} values with {resamples} resamples is empty")
    members = np.bincount(kind)
    if 4 * len(members) > count:
        order = np.argsort(kind, kind="stable")
        starts = np.cumsum(members) - members

        def by_unit(weights: Values) -> Values:
            return statistic(np.add.reduceat(weights[:, order], starts, axis=1))

        return bootstrap_replicates(count, by_unit, resamples=resamples, seed=seed)
    rng = random_source(seed)
    block = max(1, _BLOCK // len(members))
    parts = [min(block, resamples - start) for start in range(0, resamples, block)]
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = [rng.multinomial(count, members / count, size=part) for part in parts]
        return np.concatenate([statistic(part.astype(np.float64)) for part in drawn])


def interval(value: float, replicates: Values, n: int) -> Estimate:
    """Return the percentile interval of ``replicates``.

    Resamples on which the statistic is undefined (NaN) are left out.
    """
    defined = replicates[~np.isnan(replicates)]
    if defined.size == 0:
        return Estimate(float(value), float("nan"), float("nan"), n)
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(float(value), float(low), float(high), n)


def bootstrap_means(
    columns: Mapping[str, ArrayLike],
    *,
    clusters: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Estimate the mean of every column, all over the same resamples.

    Args:
        columns: name -> n values, one a query or an image.
        clusters: n integers; values of one cluster (the captions of one image) are drawn
            together, and `Estimate.n` counts clusters.
        resamples: how many resamples.
        seed: of the resampling.

    Raises:
        UserError: columns are empty, of different length, or not finite.
    """
    values = np.stack([_finite(name, column) for name, column in columns.items()], axis=1)
    sums, sizes = _by_cluster(values, clusters)
    kinds, kind = np.unique(np.column_stack([sums, sizes]), axis=0, return_inverse=True)

    def means(weights: Values) -> Values:
        totals = weights @ kinds
        return totals[:, :-1] / totals[:, -1:]

    replicates = bootstrap_kinds(kind.reshape(-1), means, resamples=resamples, seed=seed)
    return {
        name: interval(values[:, at].mean(), replicates[:, at], len(sums))
        for at, name in enumerate(columns)
    }


def bootstrap_mean(
    values: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of ``values``; see `bootstrap_means`."""
    table = bootstrap_means({"values": values}, clusters=clusters, resamples=resamples, seed=seed)
    return table["values"]


def cluster_index(clusters: ArrayLike | None, count: int) -> NDArray[np.int64]:
    """Return the cluster of each of ``count`` units as 0, 1, ...; by default each is its own.

    Raises:
        UserError: there is not one label for each unit.
    """
    if clusters is None:
        return np.arange(count, dtype=np.int64)
    labels = np.asarray(clusters)
    if labels.shape != (count,):
        raise UserError(f"{labels.size} cluster labels were given for {count} values")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64).reshape(count)


def _by_cluster(values: Values, clusters: ArrayLike | None) -> tuple[Values, Values]:
    """Sum (n, c) values by cluster; return the sums and the sizes of the clusters."""
    if clusters is None:
        return values, np.ones(len(values))
    index = cluster_index(clusters, len(values))
    sums: Values = np.stack([np.bincount(index, column) for column in values.T], axis=1)
    return sums.astype(np.float64), np.bincount(index).astype(np.float64)


def _finite(name: str, values: ArrayLike) -> Values:
    """Return ``values`` as a finite float64 vector."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise UserError(f"{name} has shape {vector.shape}, and one value an image is needed")
    bad = int((~np.isfinite(vector)).sum())
    if bad:
        raise UserError(f"{bad} of {len(vector)} values of {name} are not finite numbers")
    return vector
