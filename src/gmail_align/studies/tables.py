"""The tables of a study: ours and the paper's side by side, and what became of each claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gmail_align.artifacts import write_bytes
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.charts import interval_plot
from gmail_align.report.images import data_uri
from gmail_align.report.names import DIFFERENCE, PERCENT, PLAIN, Unit
from gmail_align.report.numbers import duration, number
from gmail_align.report.tables import Cell, Column, Row, Table
from gmail_align.report.templating import environment
from gmail_align.studies.numbers import detectable, mean_over
from gmail_align.studies.plots import plot_files
from gmail_align.studies.result import Number, ShownColumn, ShownRow, StudyResult, TestedClaim

PAGE: Final = "index.html"
VERDICTS: Final = ("holds", "not significant", "reversed", "not tested")
_UNITS: Final = {"percent": PERCENT, "plain": PLAIN}
_DIFFERENCES: Final = {"percent": DIFFERENCE, "plain": Unit(1.0, 3, signed=True)}
_SIZES: Final = {"percent": PERCENT, "plain": Unit(1.0, 3)}
DETECTABLE: Final = "Detectable"
"""Heading of the difference that a study of this size finds in four of five cases."""
_SHOWN: Final = Unit(1.0, 2)
_SHOWN_DIFFERENCE: Final = Unit(1.0, 2, signed=True)
"""The paper's numbers stand as they are printed."""
_PLOT_PIXELS: Final = 1280
_OTHER_WORLD: Final = (
    "The paper's numbers are single runs on other data. Compare directions with them, not values."
)


def heading(result: StudyResult) -> str:
    """Return the number and the title of a study."""
    return ": ".join(filter(None, (result.number, result.title)))


def study_table(result: StudyResult) -> Table:
    """Return the rows of a study, ours and the paper's in turn."""
    columns: list[Column] = []
    for column in result.columns:
        times = " ×100" if column.unit == "percent" else ""
        columns.append(Column(column.label + times, _UNITS.get(column.unit, PLAIN)))
        if _is_printed(result, column):
            columns.append(Column(f"{column.label}, paper"))
    if any(row.paper for row in result.rows):
        columns.append(Column("Paper's numbers", text=True))
    seeds = f"{result.seeds} seeds" if result.seeds > 1 else "one seed"
    return Table(
        result.study,
        f"{heading(result)} ({result.scale} scale, {seeds})",
        "Row",
        columns,
        [Row(row.label, _cells(result, row), row.detail, row.mark) for row in result.rows],
        _OTHER_WORLD if any(row.paper for row in result.rows) else "",
        detailed=True,
    )


def claims_table(result: StudyResult) -> Table:
    """Return the claims of a study with their paired differences and verdicts."""
    labels = {row.name: row.label for row in result.rows}
    shown = {key: c.label for c in result.columns for key in (c.name, c.metric)}
    return Table(
        f"{result.study}-claims",
        f"{heading(result)}: claims",
        "Claim",
        [
            Column("By", text=True),
            Column("Difference", DIFFERENCE),
            Column(DETECTABLE),
            Column("Paper's difference"),
            Column("Verdict at this scale", text=True),
        ],
        [
            Row(
                claim.name,
                [
                    shown.get(claim.metric, claim.metric),
                    _estimate(claim.difference),
                    _detectable(result, claim),
                    None if claim.paper is None else number(claim.paper, _SHOWN_DIFFERENCE),
                    claim.verdict,
                ],
                f"{labels.get(claim.better, claim.better)} minus "
                f"{labels.get(claim.worse, claim.worse)}",
                unit=_unit_of(claim),
            )
            for claim in result.claims
        ],
        detailed=True,
    )


def _detectable(result: StudyResult, claim: TestedClaim) -> Cell:
    """Return the difference that a study of this size can show, as the table writes it.

    The interval of the difference says how precise it is, or Student's t over the seeds where that
    is wider, as in results from before intervals over few seeds were widened.
    """
    own = claim.difference
    if own is None or own.low is None or own.high is None or own.low == own.high:
        return None
    names = [c.name for c in result.columns if claim.metric in (c.name, c.metric)]
    seeds = {row.name: row.seeds.get(names[0], []) for row in result.rows} if names else {}
    better, worse = seeds.get(claim.better, []), seeds.get(claim.worse, [])
    half = (own.high - own.low) / 2
    if len(better) == len(worse) > 1:
        over_seeds = mean_over(np.subtract(better, worse).tolist())
        half = max(half, (over_seeds.high or 0.0) - (over_seeds.value or 0.0))
    return number(detectable(half, result.seeds), _SIZES.get(claim.unit, PERCENT))


def tables(result: StudyResult) -> list[Table]:
    """Return every table of a study that has rows."""
    return [table for table in (study_table(result), claims_table(result)) if table.rows]


def files_of(result: StudyResult) -> dict[str, bytes]:
    """Return every file of a study besides its result, by name."""
    files = {name: file for table in tables(result) for name, file in table.files().items()}
    page = render([result], heading(result), result.about)
    return {**files, **plot_files(result), PAGE: page.encode("utf-8", "replace")}


def write_tables(result: StudyResult, folder: Path) -> Path:
    """Write the tables of a study as md, tex and csv, and its page last."""
    for name, file in files_of(result).items():
        write_bytes(folder / name, file)
    return folder / PAGE


def write_book(results: Sequence[StudyResult], title: str, path: Path) -> None:
    """Write one page with every study, a table of contents and a summary of verdicts."""
    about = "Every study, with its table, its claims and what became of them."
    write_bytes(path, render(results, title, about).encode("utf-8", "replace"))


def render(results: Sequence[StudyResult], title: str, about: str) -> str:
    """Return a page of studies as text; several get a table of contents and of verdicts."""
    claims = [claim for result in results for claim in result.claims]
    view: dict[str, Any] = {
        "title": title,
        "about": about,
        "studies": [_view(result) for result in results],
        "counts": [(v, n) for v in VERDICTS if (n := sum(c.verdict == v for c in claims))],
        "summary": verdicts_table(results) if len(results) > 1 else None,
    }
    return str(environment().get_template("studies.html").render(script=None, **view))


def verdicts_table(results: Sequence[StudyResult]) -> Table:
    """Return one line for each claim of every study."""
    lines = [
        Row(
            claim.name,
            [_estimate(claim.difference), claim.verdict],
            heading(result),
            unit=_unit_of(claim),
        )
        for result in results
        for claim in result.claims
    ]
    columns = [Column("Difference", DIFFERENCE), Column("Verdict at this scale", text=True)]
    title = "The verdict of every claim"
    return Table("verdicts", title, "Claim", columns, lines, detailed=True)


def _unit_of(claim: TestedClaim) -> Unit:
    return _DIFFERENCES.get(claim.unit, DIFFERENCE)


def _view(result: StudyResult) -> dict[str, Any]:
    """Return what a page shows of one study."""
    notes = [f"{row.label}: {row.note}" for row in result.rows if row.note]
    provenance = {
        "scale": f"{result.scale}, on {result.base}" if result.base else result.scale,
        "seeds": str(result.seeds),
        **{name.replace("_", " "): f"{n:,}" for name, n in result.counts.items()},
        "time of every step": "" if result.seconds is None else duration(result.seconds),
        "result": result.fingerprint,
        "made from": result.made_from,
        **{f"version of {name}": version for name, version in result.versions.items()},
    }
    return {
        "name": result.study,
        "heading": heading(result),
        "about": result.about,
        "plot": interval_plot(_as_run(result)),
        "tables": tables(result),
        "plots": [
            data_uri(file, name, _PLOT_PIXELS)
            for name, file in plot_files(result).items()
            if name.endswith(".png")
        ],
        "notes": [*notes, *result.notes],
        "provenance": {name: value for name, value in provenance.items() if value},
    }


def _as_run(result: StudyResult) -> dict[str, Any]:
    """Return a study as the figure of rows with intervals reads a run: by its first claim."""
    columns = [column for column in result.columns if column.unit == "percent"]
    labels = {column.metric: column.label for column in columns}
    rows = [
        {
            **row.model_dump(include={"name", "label", "detail", "mark"}),
            "metrics": {
                column.label: row.values[column.name].model_dump()
                for column in columns
                if column.name in row.values
            },
        }
        for row in result.rows
    ]
    claims = [
        {**claim.model_dump(include={"name", "better", "worse", "verdict"}), "metric": metric}
        for claim in result.claims
        if (metric := labels.get(claim.metric))
    ]
    return {"rows": rows, "claims": claims} if claims else {}


def _cells(result: StudyResult, row: ShownRow) -> list[Cell]:
    cells: list[Cell] = []
    for column in result.columns:
        cells.append(_cell(row.values.get(column.name), column))
        if _is_printed(result, column):
            printed = row.paper.get(column.name)
            cells.append(None if printed is None else number(printed, _SHOWN))
    if any(one.paper for one in result.rows):
        labels = {column.name: column.label for column in result.columns}
        cells.append(_statuses(row.status, labels))
    return cells


def _is_printed(result: StudyResult, column: ShownColumn) -> bool:
    """Whether the paper has a number in a column."""
    return any(column.name in row.paper for row in result.rows)


def _cell(value: Number | None, column: ShownColumn) -> Cell:
    if value is None or value.value is None:
        return None
    return round(value.value) if column.unit == "count" else _estimate(value)


def _estimate(own: Number | None) -> Estimate | None:
    if own is None:
        return None
    value, low, high = (math.nan if x is None else x for x in (own.value, own.low, own.high))
    return Estimate(value, low, high, own.n)


def _statuses(status: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """Say what is known of the paper's numbers in a row: once where it is the same of all."""
    kinds = list(dict.fromkeys(status.values()))
    if len(kinds) < 2:
        return "".join(kinds)
    groups = {kind: [labels[c] for c in labels if status.get(c) == kind] for kind in kinds}
    return "; ".join(f"{', '.join(names)}: {kind}" for kind, names in groups.items() if names)
