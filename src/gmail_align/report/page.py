"""The report: one HTML page that needs nothing else, with its tables and figures as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from gmail_align.artifacts import write_bytes
from gmail_align.report import charts, words
from gmail_align.report.data import ReportData, rows, section
from gmail_align.report.explore import explorer, pair_view
from gmail_align.report.figures import all_figures
from gmail_align.report.images import data_uri
from gmail_align.report.numbers import duration
from gmail_align.report.projection import Projection, project
from gmail_align.report.results import all_tables, stages
from gmail_align.report.tables import Table
from gmail_align.report.templating import environment, script

PAGE: Final = "index.html"
_MOST_CURVES: Final = 8
"""Curves that are drawn at once; the rest is folded."""
_COUNTS: Final = {
    "captions": "captions",
    "real_images": "real images",
    "generated_images": "generated images",
    "pairs": "pairs",
    "test_images": "real test images",
}
_HEADINGS: Final = {
    "done": "What was done",
    "rows": "Rows and claims",
    "gap": "The gap, before and after alignment",
    "pairs": "The same caption twice",
    "embeddings": "Real and generated embeddings",
    "curves": "How alignment went",
    "transfer": "Retrieval and zero-shot",
    "samples": "Sample captions",
    "limits": "Limits and provenance",
}


class SampleView(NamedTuple):
    """A sample with its image as an address and captions as (label, mark, text)."""

    image: str
    references: list[str]
    captions: list[tuple[str, str, str]]


class StageView(NamedTuple):
    """A stage with its time and its share of the longest stage's."""

    name: str
    what: str
    time: str
    share: str


def write_report(data: ReportData, out: Path) -> Path:
    """Write ``out/index.html``, ``out/tables/`` and ``out/figures/``; the page last.

    The same data gives the same bytes. Each file appears whole or not at all.

    Args:
        data: What to show; missing parts are left out.
        out: Folder to write to; created when absent.

    Returns:
        The path of the page.

    Raises:
        DataError: a part is malformed, or an image cannot be read.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    tables = all_tables(data)
    maps = _maps(data)
    page = render(data, tables, maps)
    files = {f"tables/{name}": file for t in tables.values() for name, file in t.files().items()}
    files |= {f"figures/{name}": file for name, file in all_figures(data, maps).items()}
    for name, file in files.items():
        write_bytes(out / name, file)
    write_bytes(out / PAGE, page.encode("utf-8", "replace"))
    return out / PAGE


def render(data: ReportData, tables: Mapping[str, Table], maps: Mapping[str, Projection]) -> str:
    """Return the page as text."""
    view = _view(data, tables, maps)
    return str(environment().get_template("page.html").render(**view))


def _view(
    data: ReportData, tables: Mapping[str, Table], maps: Mapping[str, Projection]
) -> dict[str, Any]:
    """Return what the template shows, by name."""
    result = data.result
    counts = section(result, "counts")
    shown_pairs = explorer(data.embedded, data.embeddings)
    linked = [one["name"] for one in shown_pairs["maps"]] if shown_pairs else []
    view = {
        "title": data.title,
        "data": data,
        "tables": tables,
        "standfirst": words.standfirst(result),
        "findings": words.findings(result),
        "plot": charts.interval_plot(result),
        "counts": [(_COUNTS.get(name, name.replace("_", " ")), n) for name, n in counts.items()],
        "stages": _stage_views(data),
        "total_time": duration(sum(item.seconds for item in stages(data))),
        "guard_notes": words.guard_notes(result),
        "gap_summary": words.gap_summary(result),
        "moved_measures": words.moved_measures(result),
        "same_routes": words.same_routes(result),
        "ceiling": words.ceiling(result),
        "pairs": [pair_view(pair, row) for row, pair in enumerate(data.pairs)],
        "clouds": [
            charts.cloud(name, projection, linked=name in linked)
            for name, projection in maps.items()
        ],
        "explorer": shown_pairs,
        "script": script(),
        "runs": [charts.run_charts(name, curve) for name, curve in data.curves.items()],
        "most_curves": _MOST_CURVES,
        "samples": [_sample_view(data, index) for index in range(len(data.samples))],
        "transfer": [t for n, t in tables.items() if n.startswith(("retrieval-", "zeroshot"))],
        "limits": words.limits(data),
        "intervals": data.provenance.get("intervals", words.INTERVALS),
        "seed": result.get("seed"),
        "box": charts,
    }
    return {**view, "parts": _parts(view)}


def _parts(view: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbered sections that there is something to show in, id -> heading."""
    tables = view["tables"]
    shown = {
        "done": view["stages"] or view["counts"] or view["guard_notes"],
        "rows": "rows" in tables or "claims" in tables,
        "gap": "gap" in tables,
        "pairs": view["pairs"],
        "embeddings": view["clouds"],
        "curves": view["runs"],
        "transfer": bool(view["transfer"]),
        "samples": view["samples"],
        "limits": True,
    }
    return {name: heading for name, heading in _HEADINGS.items() if shown[name]}


def _maps(data: ReportData) -> dict[str, Projection]:
    maps = {name: project(*features) for name, features in data.embeddings.items()}
    return {name: projection for name, projection in maps.items() if projection is not None}


def _stage_views(data: ReportData) -> list[StageView]:
    shown = stages(data)
    longest = max((item.seconds for item in shown), default=0.0) or 1.0
    return [
        StageView(
            item.name, item.what, duration(item.seconds), f"{100 * item.seconds / longest:.1f}"
        )
        for item in shown
    ]


def _sample_view(data: ReportData, index: int) -> SampleView:
    sample = data.samples[index]
    known = {row.name: row for row in rows(data.result)}
    captions = [
        (known[name].label, known[name].mark, text) if name in known else (name, "", text)
        for name, text in sample.captions.items()
    ]
    return SampleView(
        data_uri(sample.image, f"the image of sample {index}"), list(sample.references), captions
    )
