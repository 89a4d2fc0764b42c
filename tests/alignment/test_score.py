"""Scores of held-out pairs and their paired bootstrap, against a plain one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from gmail_align.alignment.feature_guard import choose
from gmail_align.alignment.score import Part, gain, sure_gain, total


def _score(rng: np.random.Generator, image: np.ndarray, weights: tuple[float, ...]) -> list[Part]:
    return [Part(rng.normal(size=len(image)), image, weight) for weight in weights]


def test_a_score_is_the_weighted_sum_of_means() -> None:
    parts = [
        Part(np.array([1.0, 3.0]), np.arange(2)),
        Part(np.array([10.0]), np.zeros(1, int), 0.5),
    ]
    assert total(parts) == 7.0
    assert math.isnan(total([Part(np.empty(0), np.empty(0, int))]))


def test_the_interval_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(30), 2)
    before, after = (_score(rng, image, (1.0, 0.5)) for _ in range(2))
    result = gain(before, after, 30)
    assert result.value == pytest.approx(total(after) - total(before))
    draws = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(image == one) for one in rng.integers(30, size=30)])
        draws.append(
            sum(
                b.weight * (b.values[rows].mean() - a.values[rows].mean())
                for a, b in zip(before, after, strict=True)
            )
        )
    low, high = np.percentile(draws, [2.5, 97.5])
    assert result.low == pytest.approx(low, abs=0.1)
    assert result.high == pytest.approx(high, abs=0.1)
    assert result.n == 30


def test_a_small_gain_on_one_image_in_many_is_noise() -> None:
    image, before = np.arange(50), np.zeros(50)
    lucky = before.copy()
    lucky[3] = 1.0
    assert gain([Part(before, image)], [Part(lucky, image)], 50).low == 0.0
    assert gain([Part(before, image)], [Part(before + 0.01, image)], 50).low > 0.0


@pytest.mark.parametrize(("gaining", "losing"), [(4, 0), (5, 0), (6, 0), (3, 2)])
def test_few_images_that_change_show_no_gain(gaining: int, losing: int) -> None:
    """By a sign test, six that all gain are the fewest which are beyond the 95%."""
    before, image = np.zeros(24), np.arange(24)
    after = before.copy()
    after[:gaining], after[gaining : gaining + losing] = 1.0, -1.0
    sure = binomtest(gaining, gaining + losing).pvalue < 0.05
    shown = sure_gain([Part(before, image)], [Part(after, image)], 24)
    assert (shown.low > 0) == sure == (gaining == 6)
    values = {"raw": before.tolist(), "shift": before.tolist(), "step 1": after.tolist()}
    assert (choose(values, 0, "transfer").kept == "step 1") == sure
