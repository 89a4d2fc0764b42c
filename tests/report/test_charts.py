from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmail_align.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    interval_plot,
    line_chart,
    run_charts,
    ticks,
)
from gmail_align.report.data import Curve

from .conftest import claim, est, rows


@given(
    st.floats(-1e6, 1e6, allow_subnormal=False),
    st.floats(1e-3, 1e6),
    st.integers(2, 8),
)
def test_ticks_cover_the_values(low: float, span: float, most: int) -> None:
    marks = ticks(low, low + span, most, cover=True)
    assert 2 <= len(marks) <= most + 3
    tolerance = 1e-6 * (abs(low) + span)
    assert marks[0] <= low + tolerance and marks[-1] >= low + span - tolerance
    assert np.all(np.diff(marks) > 0)


def test_ticks_are_round() -> None:
    assert ticks(66.7, 107.1, 5, cover=True) == [60, 70, 80, 90, 100, 110]
    assert ticks(0, 600, 4) == [0, 200, 400, 600]
    assert ticks(0, 2, 4, whole=True) == [0, 1, 2]
    assert ticks(3, 3, 4) == [3]


def test_intervals_lie_on_the_axis() -> None:
    plot = interval_plot({"rows": rows(), "claims": [claim("gmail", "raw", None, "not tested")]})
    assert plot is not None and len(plot.rows) == 6 and plot.n == 40
    for row in plot.rows:
        assert 0 <= float(row.low) < float(row.at) < float(row.high) <= 100
    assert plot.reference == plot.rows[0].at and plot.reference_label == "Row raw"


def test_one_row_without_interval_is_drawn() -> None:
    plot = interval_plot({"rows": [{"name": "real", "metrics": {"CIDEr": 0.5}}]})
    assert plot is not None
    assert plot.rows[0].low == plot.rows[0].high == plot.rows[0].at
    assert interval_plot({}) is None


def test_lines_stay_in_their_box() -> None:
    points = [(float(k), float(np.sin(k))) for k in range(1000)]
    chart = line_chart("wave", {"a": points, "b": [(0.0, float(2))]}, best=500)
    assert chart is not None and chart.lines[0].averaged == 10 and chart.best is not None
    for line in chart.lines:
        for x, y in (map(float, point.split(",")) for point in line.points.split()):
            assert LEFT <= x <= RIGHT and TOP <= y <= BOTTOM


def test_undefined_losses_are_left_out() -> None:
    losses = [{"step": 1.0, "total": float("nan")}, {"step": 2.0, "total": 1.0}]
    charts = run_charts("gmail", Curve(losses=losses))
    assert charts.name == "gmail" and charts.losses is not None
    assert len(charts.losses.lines[0].points.split()) == 1
    assert run_charts("gmail", Curve()).losses is None


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_equal_values_are_drawn(value: float) -> None:
    equal = [{"name": name, "metrics": {"CIDEr": est(value, 0.0)}} for name in ("real", "raw")]
    assert interval_plot({"rows": equal}) is not None
    assert line_chart("flat", {"a": [(0.0, value), (5.0, value)]}) is not None
