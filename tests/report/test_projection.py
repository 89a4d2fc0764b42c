from __future__ import annotations

import numpy as np
import pytest

from gmail_align.errors import DataError
from gmail_align.report import projection
from gmail_align.report.projection import project, separability


def clouds(count: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    real = rng.normal(size=(count, 8)) + 3
    return real, rng.normal(size=(count, 8)) + np.where(np.arange(8) % 2, -shift, shift) + 3


def test_the_layout_is_the_same_every_time() -> None:
    real, generated = clouds(30, 2.0)
    first, second = project(real, generated), project(real.copy(), generated.copy())
    assert first is not None and second is not None
    assert np.array_equal(first.real, second.real)
    assert np.array_equal(first.generated, second.generated)
    assert first.perplexity == pytest.approx(59 / 3)
    places = np.concatenate([first.real, first.generated])
    assert places.min() >= -1e-9 and places.max() <= 1 + 1e-9 and np.ptp(places) > 0.9


def test_many_points_are_thinned_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "MOST", 10)
    result = project(*clouds(25, 1.0))
    assert result is not None and result.total == (25, 25)
    assert len(result.real) == len(result.generated) == 10


def test_separability_of_apart_mixed_and_paired_clouds() -> None:
    assert separability(*clouds(100, 30.0)) == 1.0
    assert 0.4 < separability(*clouds(100, 0.0)) < 0.6
    real, _ = clouds(50, 0.0)
    assert separability(real, real + 1e-6) == 0.0


def test_separability_weighs_both_kinds_alike() -> None:
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(200, 4)), rng.normal(size=(10, 4))
    assert 0.3 < separability(real, generated) < 0.7


def test_too_few_points_are_no_picture() -> None:
    assert project(*clouds(3, 1.0)) is None
    assert project(*clouds(4, 1.0)) is not None


@pytest.mark.parametrize(
    ("real", "generated", "match"),
    [
        (np.ones((5, 3)), np.ones((5, 4)), "do not compare"),
        (np.ones(5), np.ones(5), "do not compare"),
        (np.ones((5, 1)), np.ones((5, 1)), "fewer than 2"),
        (np.full((5, 3), np.nan), np.ones((5, 3)), "finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    real: np.ndarray, generated: np.ndarray, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        project(real, generated)


def test_equal_embeddings_are_no_picture_and_repeated_ones_are() -> None:
    assert project(np.ones((6, 3)), np.ones((6, 3))) is None
    row = np.concatenate([np.ones((5, 3)), np.eye(3)])
    result = project(row, row)
    assert result is not None and np.isfinite(result.real).all()
