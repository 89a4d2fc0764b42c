from __future__ import annotations

import numpy as np
import pytest

from gmail_align.errors import DataError
from gmail_align.evaluation.compare import compare_items
from gmail_align.evaluation.items import Items
from gmail_align.metrics.statistics import mean_column

IDS = tuple(str(number) for number in range(200))


def items(values: np.ndarray, ids: tuple[str, ...] = IDS, protocol: str = "p") -> Items:
    return Items(protocol, ids, {"m": mean_column(values), "o": mean_column(values + 1)})


def test_results_are_paired_by_id_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    hard, order = rng.normal(size=200), rng.permutation(200)
    a, b = hard + 0.2 + 0.01 * rng.normal(size=200), hard
    turned = items(b[order], tuple(IDS[at] for at in order))
    found = compare_items(items(a), turned, metrics=["m"])
    assert found["metrics"] == {"m": pytest.approx(a.mean() - b.mean())}
    assert found["a"]["m"] - found["b"]["m"] == pytest.approx(found["metrics"]["m"])
    low, high = found["intervals"]["m"]
    assert 0.19 < low < found["metrics"]["m"] < high < 0.21
    assert found["n"] == {"items": 200} and found["protocol"] == "p"


def test_a_result_does_not_differ_from_itself() -> None:
    found = compare_items(items(np.arange(200.0)), items(np.arange(200.0)))
    assert found["metrics"] == {"m": 0, "o": 0}
    assert found["intervals"] == {"m": [0, 0], "o": [0, 0]}


def test_what_does_not_pair_is_refused() -> None:
    values = np.arange(200.0)
    other = items(values[:199], (*IDS[:198], "x"))
    for a, b, metrics, message in (
        (items(values), items(values, protocol="q"), None, "different protocols"),
        (items(values), other, None, r"3 items: 198, 199, x"),
        (items(values), items(values), ["m", "CIDEr"], "both results need CIDEr"),
    ):
        with pytest.raises(DataError, match=message):
            compare_items(a, b, metrics=metrics)
