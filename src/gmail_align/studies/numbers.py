"""Numbers over seeds: means, and claims that are paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct as noncentral
from scipy.stats import t as student

from gmail_align.evaluation.compare import score_runs
from gmail_align.items import read_items
from gmail_align.metrics.statistics import seed_mean
from gmail_align.results import estimate_table
from gmail_align.studies.result import Number, TestedClaim
from gmail_align.workflow.summary import verdict_of


class Statement(NamedTuple):
    """What a study claims: one row is better than another."""

    name: str
    better: str
    worse: str


def mean_over(values: Sequence[float]) -> Number:
    """Return the mean over seeds with its 95% interval by Student's t; one seed has none."""
    if len(values) < 2:
        return Number(value=float(np.mean(values)))
    return Number.model_validate(estimate_table({"": seed_mean(values)})[""])


def detectable(differences: Sequence[float], power: float = 0.8) -> float:
    """Return the true difference that as many seeds show with the given probability.

    A paired t test at 5%, of seeds that vary as these do: its power is that of the noncentral t
    distribution (Cohen 1988, ch. 2).

    Args:
        differences: One row minus the other, of each seed; at least two.
        power: The probability.

    Example:
        >>> round(detectable([0.1, 0.3, 0.2, 0.4, 0.0]), 3)
        0.266
    """
    n = len(differences)
    needed = student.ppf(0.975, n - 1)
    size = brentq(lambda shift: noncentral.sf(needed, n - 1, shift) - power, 0.0, 1000.0)
    return float(size * np.std(differences, ddof=1) / n**0.5)


def tested(
    statement: Statement, metric: str, better: Sequence[Path], worse: Sequence[Path]
) -> TestedClaim:
    """Compare two rows item by item and seed by seed.

    Args:
        statement: What is claimed.
        metric: By which measure.
        better: Folder of the better row's result, of every seed.
        worse: The same of the other row.
    """
    first, second = ([read_items(folder) for folder in folders] for folders in (better, worse))
    difference = estimate_table(score_runs(first, second, [metric]))[metric]
    return TestedClaim(
        **statement._asdict(),
        metric=metric,
        verdict=verdict_of(difference),
        difference=Number.model_validate(difference),
    )
