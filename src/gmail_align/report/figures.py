"""The figures as files, SVG and PNG, drawn with matplotlib; the same data gives the same bytes."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from gmail_align.extras import require
from gmail_align.report.data import Curve, ReportData, has_interval, headline
from gmail_align.report.images import decode
from gmail_align.report.names import PERCENT
from gmail_align.report.projection import Projection
from gmail_align.report.results import scored_rows

COLOURS: Final = {
    "ink": "#23211d",
    "soft": "#6b665d",
    "rule": "#ded9cf",
    "ours": "#0b6b5d",
    "real": "#3a5fa6",
    "generated": "#bd5418",
}
_STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "gmail-align",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["soft"],
    "axes.labelcolor": COLOURS["soft"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "text.color": COLOURS["ink"],
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.prop_cycle": "cycler('color', ['#23211d', '#0b6b5d', '#bd5418', '#3a5fa6', '#8a8378'])",
    "legend.frameon": False,
}
_DOTS: Final = 160
"""Pixels an inch of the PNG."""
Painter = Callable[[Any], None]


def all_figures(data: ReportData, maps: Mapping[str, Projection]) -> dict[str, bytes]:
    """Return every figure that there is data for, as files by name."""
    scored = scored_rows(data.result)
    curves = {name: curve for name, curve in data.curves.items() if curve.losses or curve.scores}
    jobs: dict[str, tuple[tuple[float, float], Painter] | None] = {
        "headline": ((7.0, 2.8), lambda page: _headline(page, data)) if scored else None,
        "pairs": ((7.0, _pair_height(data)), lambda page: _pairs(page, data))
        if data.pairs
        else None,
        "embeddings": ((3.6 * len(maps), 4.0), lambda page: _embeddings(page, maps))
        if maps
        else None,
        "curves": ((8.0, _curve_height(curves)), lambda page: _curves(page, curves))
        if curves
        else None,
    }
    files: dict[str, bytes] = {}
    for name, job in jobs.items():
        if job is not None:
            files |= drawn(name, *job)
    return files


def drawn(name: str, size: tuple[float, float], paint: Painter) -> dict[str, bytes]:
    """Paint one figure and return it in both formats, whatever style the user has set."""
    require("matplotlib", "report")
    style = require("matplotlib.style", "report")
    figures = require("matplotlib.figure", "report")
    agg, svg = (require(f"matplotlib.backends.backend_{kind}", "report") for kind in ("agg", "svg"))
    files = {f"{name}.{kind}": io.BytesIO() for kind in ("svg", "png")}
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        page = figures.Figure(figsize=size, layout="constrained", dpi=_DOTS)
        paint(page)
        # Figure.savefig would lay out and draw twice for each file; the layout takes the most time.
        agg.FigureCanvasAgg(page).print_png(
            files[f"{name}.png"], metadata={"Software": "gmail-align"}
        )
        page.set_layout_engine("none")
        svg.FigureCanvasSVG(page).print_svg(
            files[f"{name}.svg"], metadata={"Date": None, "Creator": "gmail-align"}
        )
    return {name: file.getvalue() for name, file in files.items()}


def _headline(page: Any, data: ReportData) -> None:
    """Draw a dot and its interval for each row."""
    metric = headline(data.result)
    items = [row for row in scored_rows(data.result) if metric in row.metrics]
    axes = page.subplots()
    for at, row in enumerate(items):
        value = row.metrics[metric]
        colour = COLOURS["ours"] if row.mark == "ours" else COLOURS["ink"]
        if has_interval(value):
            ends = [PERCENT.scale * end for end in (value.low, value.high)]
            axes.plot(ends, [at, at], color=colour, linewidth=2, solid_capstyle="round")
        fill = "white" if row.mark == "bound" else colour
        centre = PERCENT.scale * value.value
        axes.plot([centre], [at], "o", color=colour, markerfacecolor=fill, markersize=7)
    axes.set_yticks(range(len(items)), [row.label for row in items])
    axes.set_ylim(len(items) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{metric} ×100 on real test images; bar: 95% interval")


def _pairs(page: Any, data: ReportData) -> None:
    """Draw real next to generated over their caption, four pairs a row."""
    grid = page.subplots(math.ceil(len(data.pairs) / 4), 8, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, pair in enumerate(data.pairs):
        row, column = divmod(index, 4)
        encoded_images = {"real": pair.real, "generated": pair.generated}
        for axes, (name, encoded) in zip(
            grid[row, 2 * column :], encoded_images.items(), strict=False
        ):
            axes.imshow(np.asarray(decode(encoded, f"the {name} image of pair {index}")[0]))
            axes.set_title(name, fontsize=7, color=COLOURS[name], loc="center", pad=2)
        under = {"transform": grid[row, 2 * column].transAxes, "va": "top", "fontsize": 6}
        text = grid[row, 2 * column].text(0, -0.08, _wrapped(pair.caption), **under)
        text.set_in_layout(False)


def _pair_height(data: ReportData) -> float:
    return 1.5 * math.ceil(len(data.pairs) / 4)


def _wrapped(caption: str) -> str:
    """Break a caption into at most three short lines that every font engine takes."""
    text = caption.encode("utf-8", "replace").decode().replace("\0", "")
    return "\n".join(textwrap.wrap(text, 34, max_lines=3, placeholder=" …"))


def _embeddings(page: Any, maps: Mapping[str, Projection]) -> None:
    """Draw Figure 3: one panel before alignment, and one after each."""
    panels = page.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, projection) in zip(panels, maps.items(), strict=True):
        for kind, marker in (("real", "o"), ("generated", "^")):
            places = getattr(projection, kind)
            look = {"s": 10, "marker": marker, "color": COLOURS[kind], "alpha": 0.75}
            axes.scatter(*places.T, linewidth=0, label=f"{kind} ({len(places)})", **look)
        share = f"{100 * projection.separability:.1f}%"
        axes.set_title(f"{name}: nearest neighbour of its own kind {share}", fontsize=8)
        axes.set(xticks=[], yticks=[], xlim=(-0.03, 1.03), ylim=(1.03, -0.03), aspect="equal")
        for spine in axes.spines.values():
            spine.set(visible=True, color=COLOURS["rule"])
    panels[0].legend(loc="lower left", fontsize=7, handletextpad=0.1)


def _terms(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what is measured at each step; whether a step may be kept is not a measure."""
    return list(dict.fromkeys(k for row in rows for k in row if k not in ("step", "eligible")))


def _curve_height(curves: Mapping[str, Curve]) -> float:
    """Return inches for all panels, each tall enough for its legend."""
    longest = max((len(_terms(c.scores)) for c in curves.values()), default=0)
    return max(1.9, 0.15 * longest + 0.3) * len(curves) + 0.3


def _curves(page: Any, curves: Mapping[str, Curve]) -> None:
    """Draw, for each run, its loss terms and the guard's measures."""
    grid = page.subplots(len(curves), 2, squeeze=False)
    for (left, right), (name, curve) in zip(grid, curves.items(), strict=True):
        for axes, rows, what in ((left, curve.losses, "loss"), (right, curve.scores, "guard")):
            axes.set_title(f"{name}: {what}", fontsize=8)
            for term in _terms(rows):
                kept = [(row["step"], row[term]) for row in rows if term in row]
                axes.plot(*zip(*kept, strict=True), linewidth=1, label=term.replace("_", " "))
            if rows:
                axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
        if curve.best_step is not None:
            right.axvline(curve.best_step, color=COLOURS["soft"], linewidth=0.8, linestyle=":")
    for axes in grid[-1]:
        axes.set_xlabel("step")
