"""Geometry of the page's charts; the templates draw them, so that every text is escaped there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.data import Curve, CurvePoint, claims, has_interval, headline
from gmail_align.report.names import GAP, PERCENT
from gmail_align.report.numbers import NOTHING, interval, number
from gmail_align.report.projection import Points, Projection
from gmail_align.report.results import scored_rows

WIDTH: Final = 260
HEIGHT: Final = 176
LEFT: Final = 38
RIGHT: Final = 252
TOP: Final = 8
BOTTOM: Final = 150
CLOUD: Final = 320
_CLOUD_MARGIN: Final = 10
_MOST_POINTS: Final = 100


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: str
    label: str


@dataclass(frozen=True)
class IntervalRow:
    """One row of the headline figure; places are percent of the axis."""

    label: str
    detail: str
    role: str
    value: str
    bounds: str
    at: str
    low: str
    high: str


@dataclass(frozen=True)
class IntervalPlot:
    """Dots with intervals on one axis."""

    metric: str
    rows: Sequence[IntervalRow]
    ticks: Sequence[Tick]
    reference: str
    reference_label: str
    n: int


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, SVG points, and how many went into each point."""

    name: str
    points: str
    style: int
    averaged: int = 1


@dataclass(frozen=True)
class LineChart:
    """Lines over training steps."""

    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    best: tuple[str, str] | None = None
    summary: str = ""


@dataclass(frozen=True)
class RunCharts:
    """The charts of one training run."""

    name: str
    losses: LineChart | None
    scores: Sequence[LineChart]
    best_step: int | None


@dataclass(frozen=True)
class Cloud:
    """A panel of Figure 3."""

    name: str
    real: Sequence[tuple[str, str]]
    generated: Sequence[tuple[str, str]]
    total: tuple[int, int]
    separability: str
    perplexity: str
    title: str = "t-SNE"
    linked: bool = False
    """Point i of both kinds is pair i, which the page's script shows."""


def interval_plot(result: Mapping[str, Any]) -> IntervalPlot | None:
    """Lay out the headline figure."""
    metric = headline(result)
    shown = [
        row
        for row in scored_rows(result)
        if metric in row.metrics and math.isfinite(row.metrics[metric].value)
    ]
    if not shown:
        return None
    values = {row.name: row.metrics[metric] for row in shown}
    ends = [end for value in values.values() for end in _ends(value)]
    axis = [at / PERCENT.scale for at in ticks(min(ends) * 100, max(ends) * 100, 5, cover=True)]
    low, span = axis[0], axis[-1] - axis[0]

    def place(value: float) -> str:
        return _fixed(100 * (value - low) / span)

    lines = [
        IntervalRow(
            row.label,
            row.detail,
            row.mark or "plain",
            number(values[row.name].value),
            interval(values[row.name]),
            place(values[row.name].value),
            *map(place, _ends(values[row.name])),
        )
        for row in shown
    ]
    base = next((claim.worse for claim in claims(result) if claim.worse.name in values), None)
    marks = [Tick(place(at), f"{at * PERCENT.scale:g}") for at in axis]
    return IntervalPlot(
        metric,
        lines,
        marks,
        place(values[base.name].value) if base else "",
        base.label if base else "",
        max(value.n for value in values.values()),
    )


def run_charts(name: str, curve: Curve) -> RunCharts:
    """Lay out the loss curve and the guard's curves of one run."""
    terms = ["total", *(term for term in _names(curve.losses) if term != "total")]
    losses = line_chart("Loss", {term: _series(curve.losses, term) for term in terms})
    scores = [
        line_chart(_label(term), {term: _series(curve.scores, term)}, curve.best_step)
        for term in _names(curve.scores)
    ]
    return RunCharts(name, losses, [chart for chart in scores if chart], curve.best_step)


def line_chart(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], best: int | None = None
) -> LineChart | None:
    """Lay out lines over steps; None where there are no finite values."""
    thinned = {name: _averaged(points) for name, points in series.items() if points}
    values = [value for points, _ in thinned.values() for _, value in points]
    if not values:
        return None
    steps = [step for points in series.values() for step, _ in points]
    y_axis = ticks(min(values), max(values), 4, cover=True)
    x_axis = ticks(min(steps), max(steps), 4, whole=True)
    x_span, y_span = (min(steps), max(steps)), (y_axis[0], y_axis[-1])

    def place(point: tuple[float, float]) -> tuple[str, str]:
        x, y = _scaled(point[0], *x_span), _scaled(point[1], *y_span)
        return _fixed(LEFT + x * (RIGHT - LEFT)), _fixed(BOTTOM - y * (BOTTOM - TOP))

    lines = [
        Line(_label(name), " ".join(",".join(place(p)) for p in points), index, averaged)
        for index, (name, (points, averaged)) in enumerate(thinned.items())
    ]
    chosen = [point for points in series.values() for point in points if point[0] == best]
    x_ticks = [Tick(place((at, y_axis[0]))[0], f"{at:g}") for at in x_axis]
    y_ticks = [Tick(place((x_span[0], at))[1], f"{at:g}") for at in y_axis]
    mark = place(chosen[0]) if chosen else None
    return LineChart(title, lines, x_ticks, y_ticks, mark, _summary(series, chosen))


def cloud(name: str, projection: Projection, *, linked: bool = False) -> Cloud:
    """Lay out one panel of Figure 3; ``linked`` says that point i of both kinds is pair i."""
    return Cloud(
        name,
        _spots(projection.real),
        _spots(projection.generated),
        projection.total,
        f"{100 * projection.separability:.1f}%",
        f"{projection.perplexity:.3g}" if projection.perplexity else "",
        "t-SNE" if projection.perplexity else "PCA",
        linked,
    )


def ticks(
    low: float, high: float, most: int, *, cover: bool = False, whole: bool = False
) -> list[float]:
    """Return round numbers in low..high, or, with ``cover``, around it.

    Args:
        low: Smallest value.
        high: Largest value.
        most: About how many to return.
        cover: Begin at or below ``low`` and end at or above ``high``.
        whole: Only whole numbers.
    """
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = (low - pad, high + pad) if cover else (low, low)
    if high == low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = (
        (math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9))
        if cover
        else (math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9))
    )
    return [round(index * step, 10) + 0.0 for index in range(first, last + 1)]


def _ends(value: Estimate) -> tuple[float, float]:
    return (value.low, value.high) if has_interval(value) else (value.value, value.value)


def _series(rows: Sequence[CurvePoint], name: str) -> list[tuple[float, float]]:
    points = [(float(row["step"]), float(row[name])) for row in rows if name in row]
    return [point for point in points if math.isfinite(point[1])]


def _names(rows: Sequence[CurvePoint]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name != "step"))


def _averaged(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """Average runs of neighbours so that few points are left; return how long the runs are."""
    size = max(1, math.ceil(len(points) / _MOST_POINTS))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in parts], size


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _scaled(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _summary(
    series: Mapping[str, Sequence[tuple[float, float]]], chosen: Sequence[tuple[float, float]]
) -> str:
    """Say where the first line starts, and where it was when its step was kept or where it ends."""
    first = next((points for points in series.values() if points), [])
    if not first:
        return NOTHING
    last = chosen[0] if chosen else first[-1]
    return " → ".join(f"{point[1]:#.3g}".rstrip(".") for point in (first[0], last))


def _spots(points: Points) -> list[tuple[str, str]]:
    span = CLOUD - 2 * _CLOUD_MARGIN
    return [
        (_fixed(_CLOUD_MARGIN + x * span, 1), _fixed(_CLOUD_MARGIN + y * span, 1))
        for x, y in points
    ]


def _label(name: str) -> str:
    return GAP[name].label.partition(",")[0] if name in GAP else name.replace("_", " ")


def _fixed(value: float, digits: int = 2) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
