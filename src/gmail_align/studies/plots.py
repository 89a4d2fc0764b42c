"""Plots of a study: one column of its table over another, a line for each list of rows."""

from __future__ import annotations

from functools import partial
from typing import Any

from gmail_align.report.figures import COLOURS, drawn
from gmail_align.report.names import PERCENT, PLAIN
from gmail_align.studies.language import Plot
from gmail_align.studies.result import Number, StudyResult

_SIZE = (6.4, 3.8)
_WIDE = 20.0
"""From this ratio of the largest to the smallest place above 0 on, the axis is logarithmic."""
Point = tuple[float, Number]


def plot_files(result: StudyResult) -> dict[str, bytes]:
    """Return every plot that has a point as SVG and PNG, by name."""
    files: dict[str, bytes] = {}
    for number, plot in enumerate(result.plots, 1):
        lines = points_of(result, plot)
        if any(lines.values()):
            name = f"{result.study}-plot-{number}"
            files |= drawn(name, _SIZE, partial(_paint, result, plot, lines))
    return files


def points_of(result: StudyResult, plot: Plot) -> dict[str, list[Point]]:
    """Return the points of each line in the order of their places; rows without a number lack."""
    rows = {row.name: row.values for row in result.rows}
    lines = {}
    for label, names in plot.lines.items():
        values = [rows[name] for name in names if {plot.x, plot.y} <= rows[name].keys()]
        points = [
            (place, own[plot.y])
            for own in values
            if (place := own[plot.x].value) is not None and own[plot.y].value is not None
        ]
        lines[label] = sorted(points, key=lambda point: point[0])
    return lines


def _paint(result: StudyResult, plot: Plot, lines: dict[str, list[Point]], page: Any) -> None:
    """Draw every line with its intervals."""
    axes, columns = page.subplots(), {column.name: column for column in result.columns}
    across, up = columns[plot.x], columns[plot.y]
    scale = (PERCENT if up.unit == "percent" else PLAIN).scale
    for label, points in lines.items():
        places = [place for place, _ in points]
        middle = [scale * (one.value or 0.0) for _, one in points]
        (line,) = axes.plot(places, middle, "o-", label=label, markersize=4)
        for place, one in points:
            if one.low is not None and one.high is not None:
                ends = [scale * one.low, scale * one.high]
                axes.plot([place, place], ends, color=line.get_color(), linewidth=1)
    above = [place for points in lines.values() for place, _ in points if place > 0]
    if above and max(above) > _WIDE * min(above):
        axes.set_xscale("symlog", linthresh=min(above))
    axes.set_xlabel(across.label)
    axes.set_ylabel(up.label + (" ×100" if up.unit == "percent" else ""))
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)
