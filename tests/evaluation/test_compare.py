from __future__ import annotations

import numpy as np
import pytest

from gmail_align.errors import DataError
from gmail_align.evaluation.compare import FEWEST, compare_items, verdict
from gmail_align.items import Items
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.metrics.statistics import mean_column

IDS = tuple(str(number) for number in range(200))


def items(values: np.ndarray, ids: tuple[str, ...] = IDS, protocol: str = "p") -> Items:
    return Items(protocol, ids, {"m": mean_column(values), "o": mean_column(values + 1)})


def test_results_are_paired_by_id_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    hard, order = rng.normal(size=200), rng.permutation(200)
    a, b = hard + 0.2 + 0.01 * rng.normal(size=200), hard
    turned = items(b[order], tuple(IDS[at] for at in order))
    result = compare_items(items(a), turned, metrics=["m"])
    (apart,) = result.metrics.values()
    assert apart.value == pytest.approx(a.mean() - b.mean())
    assert result.details["a"]["m"] - result.details["b"]["m"] == pytest.approx(apart.value)
    assert 0.19 < apart.low < apart.value < apart.high < 0.21
    assert result.n == {"items": 200} and result.protocol == "p"
    assert result.details["verdicts"] == {"m": "A is better"}


def test_a_result_does_not_differ_from_itself() -> None:
    result = compare_items(items(np.arange(200.0)), items(np.arange(200.0)))
    assert {(one.value, one.low, one.high) for one in result.metrics.values()} == {(0, 0, 0)}
    assert set(result.details["verdicts"].values()) == {"no difference shown"}


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "shown"),
    [
        (0.1, 0.05, 0.2, 200, "A is better"),
        (-0.1, -0.2, -0.05, 200, "B is better"),
        (0.1, -0.05, 0.2, 200, "no difference shown"),
        (0.1, 0.0, 0.2, 200, "no difference shown"),
        (0.0, 1e-17, 1e-17, 200, "no difference shown"),
        (0.0, 0.01, 0.02, 200, "no difference shown"),
        (0.1, 0.05, 0.2, FEWEST - 1, "cannot tell"),
        (0.1, float("nan"), float("nan"), 200, "cannot tell"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(
    value: float, low: float, high: float, n: int, shown: str
) -> None:
    assert verdict(Estimate(value, low, high, n)) == shown


def test_what_does_not_pair_is_refused() -> None:
    values = np.arange(200.0)
    other = items(values[:199], (*IDS[:198], "x"))
    for a, b, metrics, message in (
        (items(values), items(values, protocol="q"), None, "q"),
        (items(values), other, None, r"198, 199, x"),
        (items(values), items(values), ["m", "CIDEr"], "CIDEr"),
    ):
        with pytest.raises(DataError, match=message):
            compare_items(a, b, metrics=metrics)
