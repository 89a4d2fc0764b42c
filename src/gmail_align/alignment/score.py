"""What the guard compares: scores of held-out pairs, and whether a gain is more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gmail_align.metrics.bootstrap import Estimate, bootstrap_replicates, interval

FEWEST = 6
"""Real images that can show a gain at all: by chance, n images all gain once in 2 to the n times,
and up to 5 that is more often than the 2.5% which an interval of 95% leaves on a side."""
_RESAMPLES = 1000


@dataclass(frozen=True)
class Part:
    """One mean that a score is made of."""

    values: npt.NDArray[np.float64]
    """Shape (k,): one value a pair, an image or a text; higher is better."""
    image: npt.NDArray[np.int64]
    """Shape (k,): the held-out real image that each value belongs to."""
    weight: float = 1.0
    """What the mean counts for."""


Score = Sequence[Part]
"""A score is the weighted sum of its parts' means."""


def total(score: Score) -> float:
    """Return a score as one number; NaN where a part does not have a value."""
    if not all(len(part.values) for part in score):
        return math.nan
    return math.fsum(part.weight * float(part.values.mean()) for part in score)


def gain(before: Score, after: Score, images: int) -> Estimate:
    """Estimate by how much one score exceeds another of the same parts, with its 95% interval.

    Real images are resampled, each with all its pairs, and the same ones on both sides (a paired
    bootstrap).

    Args:
        before: The score that is compared with.
        after: The score that may be better.
        images: Held-out real images.
    """
    sums = _differences(before, after, images)
    sizes = np.stack([np.bincount(part.image, minlength=images) for part in after], axis=1)

    def statistic(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        differences: npt.NDArray[np.float64] = ((weights @ sums) / (weights @ sizes)).sum(axis=1)
        return differences

    value = float(statistic(np.ones((1, images)))[0])
    return interval(value, bootstrap_replicates(images, statistic, resamples=_RESAMPLES), images)


def sure_gain(before: Score, after: Score, images: int) -> Estimate:
    """Estimate a gain as :func:`gain` does, and be :func:`cautious` where few images change."""
    changed = _differences(before, after, images).any(axis=1).sum()
    return cautious(gain(before, after, images), int(changed))


def _differences(before: Score, after: Score, images: int) -> npt.NDArray[np.float64]:
    """Return the weighted sum of each image's differences, a column a part."""
    pairs = zip(before, after, strict=True)
    rows = [np.bincount(b.image, b.weight * (b.values - a.values), images) for a, b in pairs]
    return np.stack(rows, axis=1)


def cautious(gain: Estimate, changed: int) -> Estimate:
    """Let the interval of a gain reach 0 where fewer than :data:`FEWEST` images change at all.

    A bootstrap of hits and misses leaves out 0 as soon as four images gain and none loses. By
    chance that happens once in eight times (a sign test).

    Args:
        gain: The mean gain over images.
        changed: Images whose value differs between the two sides.
    """
    if changed >= FEWEST:
        return gain
    return replace(gain, low=min(gain.low, 0.0), high=max(gain.high, 0.0))


def beyond_noise(low: float, images: int | float) -> bool:
    """Tell whether a gain is more than noise, by its interval's lower end and its real images."""
    return low > 0 and images >= FEWEST


def first_is_own(scores: Float[Tensor, "q c"], own: Bool[Tensor, "q c"]) -> Bool[Tensor, " q"]:
    """Tell of each row whether its best column is one of its own; ties are misses.

    The mean is recall at one.
    """
    best_own = scores.masked_fill(~own, -torch.inf).amax(dim=1)
    best_other = scores.masked_fill(own, -torch.inf).amax(dim=1)
    return best_own > best_other
