"""The figures as files, SVG and PNG, drawn with matplotlib; the same data gives the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from gmail_align.extras import require
from gmail_align.report.data import Curve, ReportData, has_interval
from gmail_align.report.images import decode
from gmail_align.report.names import HEADLINE, PERCENT, in_order
from gmail_align.report.projection import Projection
from gmail_align.report.results import captioning

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
    "legend.frameon": False,
    "savefig.dpi": 160,
}
_METADATA: Final = {
    "svg": {"Date": None, "Creator": "gmail-align"},
    "png": {"Software": "gmail-align"},
}
Painter = Callable[[Any], None]


def all_figures(data: ReportData, maps: Mapping[str, Projection]) -> dict[str, bytes]:
    """Return every figure that there is data for, as files by name."""
    scores = captioning(data.result)
    curves = {name: curve for name, curve in data.curves.items() if curve.losses or curve.scores}
    jobs: dict[str, tuple[tuple[float, float], Painter] | None] = {
        "headline": ((7.0, 2.8), lambda page: _headline(page, data)) if scores else None,
        "pairs": ((7.0, _pair_height(data)), lambda page: _pairs(page, data))
        if data.pairs
        else None,
        "embeddings": ((3.6 * len(maps), 4.0), lambda page: _embeddings(page, maps))
        if maps
        else None,
        "curves": ((7.0, 2.4 * len(curves)), lambda page: _curves(page, curves))
        if curves
        else None,
    }
    files: dict[str, bytes] = {}
    for name, job in jobs.items():
        if job is not None:
            files |= _drawn(name, *job)
    return files


def _drawn(name: str, size: tuple[float, float], paint: Painter) -> dict[str, bytes]:
    """Paint one figure and return it in both formats, whatever style the user has set."""
    require("matplotlib", "report")
    style = require("matplotlib.style", "report")
    figure_module = require("matplotlib.figure", "report")
    files = {}
    with style.context(["default", _STYLE]):
        page = figure_module.Figure(figsize=size, layout="constrained")
        paint(page)
        for kind, metadata in _METADATA.items():
            file = io.BytesIO()
            page.savefig(file, format=kind, metadata=metadata)
            files[f"{name}.{kind}"] = file.getvalue()
    return files


def _headline(page: Any, data: ReportData) -> None:
    """Draw a dot and its interval for each captioner."""
    scores = {name: row for name, row in captioning(data.result).items() if HEADLINE in row}
    axes = page.subplots()
    items = in_order(scores)
    for at, item in enumerate(items):
        found = scores[item.key][HEADLINE]
        colour = COLOURS["ours"] if item.role == "ours" else COLOURS["ink"]
        if has_interval(found):
            ends = [PERCENT.scale * end for end in (found.low, found.high)]
            axes.plot(ends, [at, at], color=colour, linewidth=2, solid_capstyle="round")
        fill = "white" if item.role == "bound" else colour
        centre = PERCENT.scale * found.value
        axes.plot([centre], [at], "o", color=colour, markerfacecolor=fill, markersize=7)
    axes.set_yticks(range(len(items)), [item.label for item in items])
    axes.set_ylim(len(items) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{HEADLINE} ×100 on real test images; bar: 95% interval")


def _pairs(page: Any, data: ReportData) -> None:
    """Draw real beside generated, four pairs a row."""
    rows = math.ceil(len(data.pairs) / 4)
    grid = page.subplots(rows, 8, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, pair in enumerate(data.pairs):
        row, column = divmod(index, 4)
        for side, (name, encoded) in enumerate(
            (("real", pair.real), ("generated", pair.generated))
        ):
            axes = grid[row, 2 * column + side]
            axes.imshow(np.asarray(decode(encoded, f"the {name} image of pair {index}")[0]))
            axes.set_title(name, fontsize=7, color=COLOURS[name], loc="center", pad=2)


def _pair_height(data: ReportData) -> float:
    return 1.2 * math.ceil(len(data.pairs) / 4)


def _embeddings(page: Any, maps: Mapping[str, Projection]) -> None:
    """Draw Figure 3: one panel before, one after."""
    panels = page.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, projection) in zip(panels, maps.items(), strict=True):
        for kind, marker in (("real", "o"), ("generated", "^")):
            places = getattr(projection, kind)
            label = f"{kind} ({len(places)})"
            axes.scatter(
                *places.T,
                s=9,
                marker=marker,
                color=COLOURS[kind],
                alpha=0.7,
                linewidth=0,
                label=label,
            )
        axes.set_title(
            f"{name}: {100 * projection.separability:.1f}% separable by nearest neighbour"
        )
        axes.title.set_fontsize(8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(1.03, -0.03)
        axes.set_aspect("equal")
    panels[0].legend(loc="lower left", fontsize=7, handletextpad=0.1)


def _curves(page: Any, curves: Mapping[str, Curve]) -> None:
    """Draw, for each run, its loss terms and the guard's score."""
    grid = page.subplots(len(curves), 2, squeeze=False)
    for (left, right), (name, curve) in zip(grid, curves.items(), strict=True):
        left.set_title(f"{name}: loss")
        right.set_title(f"{name}: guard")
        for axes, rows in ((left, curve.losses), (right, curve.scores)):
            for term in dict.fromkeys(key for row in rows for key in row if key != "step"):
                kept = [(row["step"], row[term]) for row in rows if term in row]
                axes.plot(*zip(*kept, strict=True), linewidth=1, label=term.replace("_", " "))
            if rows:
                axes.legend(fontsize=6)
            axes.set_xlabel("step")
        if curve.best_step is not None:
            right.axvline(curve.best_step, color=COLOURS["soft"], linewidth=0.8, linestyle=":")
