"""The tables of a report, read from its result."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.data import (
    EncoderResult,
    ReportData,
    RowResult,
    StageSummary,
    claims,
    encoders,
    estimate,
    has_interval,
    headline,
    not_applied,
    rows,
    section,
)
from gmail_align.report.gap_names import GAP_MEASURES
from gmail_align.report.names import DIFFERENCE, RECALLS, ROW_METRICS, Measure
from gmail_align.report.numbers import duration
from gmail_align.report.tables import Cell, Column, Row, Table

_USED: Final = {"real_images": "Real images", "generated_images": "Generated images"}
"""What a row used -> heading of its column."""


def all_tables(data: ReportData) -> dict[str, Table]:
    """Return every table that the data has rows for, by name."""
    result = data.result
    tables = (
        stages_table(data),
        alignment_table(result),
        rows_table(result),
        claims_table(result),
        gap_table(result),
        *retrieval_tables(result),
        zeroshot_table(result),
        samples_table(data),
        captions_table(data),
    )
    return {table.stem: table for table in tables if table.rows}


def scored_rows(result: Mapping[str, Any]) -> list[RowResult]:
    """Return the rows that have metrics."""
    return [row for row in rows(result) if row.metrics]


def rows_table(result: Mapping[str, Any]) -> Table:
    """Return the comparison of the rows on real test images."""
    scored, first, unapplied = scored_rows(result), headline(result), not_applied(result)
    metrics = _present(ROW_METRICS, [row.metrics for row in scored])
    best = {metric: _best(scored, metric) for metric in {*metrics, first}}
    lines = []
    for row in scored:
        cells: list[Cell] = [row.metrics.get(metric) for metric in metrics]
        strong = {index for index, metric in enumerate(metrics) if best[metric] == row.name}
        mark = "best" if best[first] == row.name else row.mark
        detail = _with_guard(row, unapplied)
        cells += [_whole(row.used.get(name)) for name in _USED]
        lines.append(Row(row.label, cells, detail, mark, frozenset(strong)))
    columns = [Column(f"{label} ×100") for label in metrics.values()]
    return Table(
        "rows",
        "Rows on real test images",
        "Row",
        [*columns, *(Column(label) for label in _USED.values())],
        lines,
        "Scores times 100, each with its 95% interval. Real images "
        "are those that training looked at or that chose the step that was kept.",
    )


def _with_guard(row: RowResult, unapplied: Container[str]) -> str:
    """Say of a row whose alignment was not applied that its number is not the alignment's."""
    if row.align not in unapplied:
        return row.detail
    note = f"the guard did not apply {row.align}: this row reads unaligned features"
    return f"{row.detail}; {note}" if row.detail else note


def claims_table(result: Mapping[str, Any]) -> Table:
    """Return the claims with their paired differences and verdicts."""
    tested = claims(result)
    metrics = _present(ROW_METRICS, [claim.metrics for claim in tested])
    lines = []
    for claim in tested:
        cells: list[Cell] = [claim.metrics.get(metric) for metric in metrics]
        strong = {k for k, cell in enumerate(cells) if isinstance(cell, Estimate) and clear(cell)}
        detail = f"{claim.better.label} minus {claim.worse.label}, by {claim.metric}"
        lines.append(Row(claim.name, [*cells, claim.verdict], detail, strong=frozenset(strong)))
    return Table(
        "claims",
        "Claims, tested on the same images",
        "Claim",
        [
            *(Column(f"{label} ×100", DIFFERENCE) for label in metrics.values()),
            Column("Verdict", text=True),
        ],
        lines,
        "Differences are paired: both rows are judged on the same images in every resample. "
        "Bold where the 95% interval leaves out zero.",
        detailed=True,
    )


def clear(value: Estimate) -> bool:
    """Say whether the interval of a difference leaves out zero."""
    return has_interval(value) and not value.low <= 0 <= value.high


def gap_table(result: Mapping[str, Any]) -> Table:
    """Return the measures of the gap before and after each alignment."""
    measured = [one for one in encoders(result) if one.gap]
    names = dict.fromkeys([*GAP_MEASURES, *(name for one in measured for name in one.gap)])
    lines = []
    for name in names:
        measure = GAP_MEASURES.get(name, Measure(name.replace("_", " "), "", ""))
        if any(name in one.gap for one in measured):
            cells: list[Cell] = [*(one.gap.get(name) for one in measured), measure.closer]
            lines.append(Row(measure.label, cells, measure.meaning, unit=measure.unit))
    columns = [Column(_encoder_label(one)) for one in measured]
    return Table(
        "gap",
        "The gap between real and generated images",
        "Measure",
        [*columns, Column("Closer is", text=True)],
        lines,
    )


def retrieval_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return one table for each protocol of retrieval, with one line for each encoder."""
    judged = encoders(result)
    tables = []
    for protocol in dict.fromkeys(name for one in judged for name in one.retrieval):
        scores = {_encoder_label(one): one.retrieval.get(protocol, {}) for one in judged}
        recalls = _present(RECALLS, scores.values())
        lines = [
            Row(label, [values.get(recall) for recall in recalls])
            for label, values in scores.items()
        ]
        columns = [Column(label) for label in recalls.values()]
        stem = "retrieval-" + re.sub(r"[^\w-]+", "_", protocol)
        title = f"Retrieval on real images, %: {protocol}"
        tables.append(Table(stem, title, "Encoder", columns, lines))
    return tables


def zeroshot_table(result: Mapping[str, Any]) -> Table:
    """Return the zero-shot accuracies: one line for each class set, one column for each encoder."""
    judged = [one for one in encoders(result) if one.zeroshot]
    sets = dict.fromkeys(name for one in judged for name in one.zeroshot)
    lines = [Row(name, [one.zeroshot.get(name) for one in judged]) for name in sets]
    columns = [Column(_encoder_label(one)) for one in judged]
    return Table("zeroshot", "Zero-shot accuracy on real images, %", "Class set", columns, lines)


def alignment_table(result: Mapping[str, Any]) -> Table:
    """Return which step the guard kept of every alignment."""
    applied = {None: "", True: "yes", False: "no: it did not help"}
    lines = [
        Row(one.name, [one.best_step, one.steps, applied[one.applied]])
        for one in encoders(result)
        if one.best_step is not None
    ]
    columns = [Column("Step kept"), Column("Steps run"), Column("Applied", text=True)]
    return Table("alignment", "What the guard kept", "Alignment", columns, lines)


def stages(data: ReportData) -> list[StageSummary]:
    """Return the stages, or those that the result knows the time of."""
    if data.stages:
        return list(data.stages)
    seconds = {
        name: estimate(value, f"seconds.{name}").value
        for name, value in section(data.result, "seconds").items()
    }
    return [StageSummary(name.replace("_", " "), value) for name, value in seconds.items()]


def stages_table(data: ReportData) -> Table:
    """Return the stages with their time."""
    lines = [Row(item.name, [duration(item.seconds), item.what]) for item in stages(data)]
    columns = [Column("Time"), Column("What", text=True)]
    return Table("stages", "What was done", "Stage", columns, lines)


def samples_table(data: ReportData) -> Table:
    """Return every sample's references and captions as text."""
    labels = {row.name: row.label for row in rows(data.result)}
    lines = []
    for index, sample in enumerate(data.samples, start=1):
        lines += [Row(str(index), ["reference", text]) for text in sample.references]
        lines += [
            Row(str(index), [labels.get(name, name), text])
            for name, text in sample.captions.items()
        ]
    columns = [Column("By", text=True), Column("Caption", text=True)]
    return Table("samples", "Sample captions", "Image", columns, lines)


def captions_table(data: ReportData) -> Table:
    """Return the captions of many test images, one column a row of the recipe."""
    labels = {row.name: row.label for row in rows(data.result)}
    names = list(dict.fromkeys(name for one in data.captioned for name in one.captions))
    lines = [
        Row(one.image_id, [one.reference, *(one.captions.get(name) for name in names)])
        for one in data.captioned
    ]
    columns = [Column("Reference", text=True)]
    columns += [Column(labels.get(name, name), text=True) for name in names]
    return Table("captions", "Captions of test images", "Image", columns, lines)


def _present(labels: Mapping[str, str], rows: Iterable[Mapping[str, object]]) -> dict[str, str]:
    """Keep the labels that some row has a value for."""
    names = {name for row in rows for name in row}
    return {name: label for name, label in labels.items() if name in names}


def _best(scored: Iterable[RowResult], metric: str) -> str | None:
    """Name the row with the highest value, bounds left out."""
    values = {
        row.name: row.metrics[metric].value
        for row in scored
        if row.mark != "bound"
        and metric in row.metrics
        and math.isfinite(row.metrics[metric].value)
    }
    return max(values, key=values.__getitem__) if len(values) > 1 else None


def _encoder_label(one: EncoderResult) -> str:
    if one.steps is None and one.name == "frozen":
        return "Before"
    name = one.label or f"After {one.name}"
    return name + (" (not applied)" if one.applied is False else "")


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
