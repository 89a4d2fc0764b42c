"""Numbers over seeds: means, and claims that are paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct as noncentral
from scipy.stats import norm as normal
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


def detectable(half_width: float, seeds: int, power: float = 0.8) -> float:
    """Return the true difference that a study finds with the given probability.

    It is found if the 95% interval lies above zero. The power is that of a t test, by the
    noncentral t distribution (Cohen 1988, ch. 2).

    Args:
        half_width: Half the width of the difference's 95% interval.
        seeds: How many seeds the interval is over; of one, images alone vary.
        power: The probability.

    Example:
        >>> round(detectable(10.0, 5), 1), round(detectable(10.0, 1), 1)
        (13.5, 14.3)
    """
    if seeds < 2:
        return float(half_width * (1 + normal.ppf(power) / normal.ppf(0.975)))
    needed = student.ppf(0.975, seeds - 1)
    size = brentq(lambda shift: noncentral.sf(needed, seeds - 1, shift) - power, 0.0, 1000.0)
    return float(half_width * size / needed)


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
