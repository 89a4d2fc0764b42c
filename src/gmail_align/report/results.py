"""The tables of a report, read from its result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.data import (
    ReportData,
    StageSummary,
    estimate,
    estimates,
    has_interval,
    section,
)
from gmail_align.report.names import (
    BOUND,
    CAPTION_METRICS,
    DIFFERENCE,
    GAP,
    HEADLINE,
    RECALLS,
    ROUTES,
    Measure,
    captioner,
    detail,
    in_order,
)
from gmail_align.report.numbers import duration
from gmail_align.report.tables import Cell, Column, Row, Table

_MINUS: Final = "_minus_"


def all_tables(data: ReportData) -> dict[str, Table]:
    """Return every table that the data has rows for, by name."""
    result = data.result
    tables = (
        stages_table(data),
        alignment_table(data),
        captioning_table(result),
        paired_table(result),
        gap_table(result),
        retrieval_table(result),
        zeroshot_table(result),
        samples_table(data),
    )
    return {table.stem: table for table in tables if table.rows}


def captioning(result: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Return captioner -> metric -> estimate, in the order of the tables."""
    names = section(result, "captioning")
    return {item.key: estimates(result, "captioning", item.key) for item in in_order(names)}


def captioning_table(result: Mapping[str, Any]) -> Table:
    """Return the comparison of the captioners on real test images."""
    scores = captioning(result)
    seen = section(result, "real_images")
    metrics = _present(CAPTION_METRICS, scores.values())
    best = {metric: _best(scores, metric) for metric in metrics}
    rows = []
    for item in in_order(scores):
        cells: list[Cell] = [scores[item.key].get(metric) for metric in metrics]
        strong = {index for index, metric in enumerate(metrics) if best[metric] == item.key}
        mark = "best" if best.get(HEADLINE) == item.key else item.role.replace("plain", "")
        cells += [_whole(seen.get(item.key))] if seen else []
        rows.append(Row(item.label, cells, detail(item, seen), mark, frozenset(strong)))
    columns = [Column(f"{label} ×100") for label in metrics.values()]
    columns += [Column("Real images seen")] if seen else []
    return Table(
        "captioning",
        "Captions of real test images",
        "Learned from",
        columns,
        rows,
        "Scores as pycocoevalcap prints them, times 100, each with its 95% interval.",
    )


def comparisons(result: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Estimate]]:
    """Return (first, second) -> metric -> paired difference, as the result names them."""
    return {
        (name.partition(_MINUS)[0], name.partition(_MINUS)[2]): estimates(result, "paired", name)
        for name in section(result, "paired")
        if _MINUS in name
    }


def paired_table(result: Mapping[str, Any]) -> Table:
    """Return the paired differences between captioners."""
    found = comparisons(result)
    metrics = _present(CAPTION_METRICS, found.values())
    rows = []
    for (first, second), scores in found.items():
        cells: list[Cell] = [scores.get(metric) for metric in metrics]
        strong = {k for k, cell in enumerate(cells) if isinstance(cell, Estimate) and clear(cell)}
        cells.append(reading(scores[HEADLINE]) if HEADLINE in scores else None)
        against = f"minus {captioner(second).label}"
        rows.append(Row(captioner(first).label, cells, against, strong=frozenset(strong)))
    return Table(
        "paired",
        "Differences on the same images",
        "Difference",
        [
            *(Column(f"{label} ×100", DIFFERENCE) for label in metrics.values()),
            Column(f"By {HEADLINE}", text=True),
        ],
        rows,
        "Paired: both captioners are judged on the same images in every resample. "
        "Bold where the 95% interval leaves out zero.",
        detailed=True,
    )


def clear(found: Estimate) -> bool:
    """Say whether the interval of a difference leaves out zero."""
    return has_interval(found) and not found.low <= 0 <= found.high


def reading(found: Estimate) -> str:
    """Say in a few words what the interval of a difference allows to say."""
    if not has_interval(found):
        return "no interval"
    return ("higher" if found.value > 0 else "lower") if clear(found) else "no clear difference"


def gap_table(result: Mapping[str, Any]) -> Table:
    """Return the measures of the gap before and after alignment."""
    times = {name: estimates(result, "gap", name) for name in ("before", "after")}
    times = {name: values for name, values in times.items() if values}
    names = [*GAP, *(name for values in times.values() for name in values if name not in GAP)]
    rows = []
    for name in dict.fromkeys(names):
        measure = GAP.get(name, Measure(name.replace("_", " "), "", ""))
        found = {time: values[name] for time, values in times.items() if name in values}
        if not found:
            continue
        cells: list[Cell] = [*(found.get(time) for time in times), measure.closer]
        rows.append(Row(measure.label, cells, measure.meaning, unit=measure.unit))
    columns = [Column(time.capitalize()) for time in times]
    return Table(
        "gap",
        "The gap between real and generated images",
        "Measure",
        [*columns, Column("Closer is", text=True)],
        rows,
    )


def retrieval_table(result: Mapping[str, Any]) -> Table:
    """Return the retrieval recalls of the frozen and the deployed route."""
    scores = {name: estimates(result, "retrieval", name) for name in section(result, "retrieval")}
    recalls = _present(RECALLS, scores.values())
    rows = [
        Row(_route(name)[0], [values.get(recall) for recall in recalls], _route(name)[1])
        for name, values in scores.items()
    ]
    columns = [Column(label) for label in recalls.values()]
    return Table("retrieval", "Retrieval on real images, %", "Route", columns, rows)


def zeroshot_table(result: Mapping[str, Any]) -> Table:
    """Return the zero-shot accuracies: one row a class set, one column a route."""
    scores = {name: estimates(result, "zeroshot", name) for name in section(result, "zeroshot")}
    sets = dict.fromkeys(name for values in scores.values() for name in values)
    rows = [Row(name, [values.get(name) for values in scores.values()]) for name in sets]
    columns = [Column(_route(name)[0]) for name in scores]
    return Table("zeroshot", "Zero-shot accuracy on real images, %", "Class set", columns, rows)


@dataclass(frozen=True)
class AlignmentRun:
    """What the guard did with one alignment run; None where it is not recorded."""

    name: str
    best_step: int | None
    steps: int | None
    applied: bool | None


def alignment_runs(data: ReportData) -> list[AlignmentRun]:
    """Return the alignment runs; how long one was is read off its curve where nothing says it."""
    runs = []
    for name in section(data.result, "alignment"):
        run = section(data.result, "alignment", name)
        losses = data.curves[name].losses if name in data.curves else ()
        steps = run.get("steps", losses[-1]["step"] if losses else None)
        best, applied = _whole(run.get("best_step")), run.get("applied")
        if applied is None and best is not None:
            applied = best > 0
        runs.append(AlignmentRun(name, best, _whole(steps), applied))
    return runs


def alignment_table(data: ReportData) -> Table:
    """Return which step the guard kept of every alignment run."""
    applied = {None: "", True: "yes", False: "no: it did not help"}
    rows = [
        Row(captioner(run.name).label, [run.best_step, run.steps, applied[run.applied]])
        for run in alignment_runs(data)
    ]
    columns = [Column("Step kept"), Column("Steps run"), Column("Applied", text=True)]
    return Table("alignment", "What the guard kept", "Alignment run", columns, rows)


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
    rows = [Row(item.name, [duration(item.seconds), item.what]) for item in stages(data)]
    columns = [Column("Time"), Column("What", text=True)]
    return Table("stages", "What was done", "Stage", columns, rows)


def samples_table(data: ReportData) -> Table:
    """Return every sample's references and captions as text."""
    rows = []
    for index, sample in enumerate(data.samples, start=1):
        rows += [Row(str(index), ["reference", text]) for text in sample.references]
        rows += [
            Row(str(index), [item.label, sample.captions[item.key]])
            for item in in_order(sample.captions)
        ]
    columns = [Column("By", text=True), Column("Caption", text=True)]
    return Table("samples", "Sample captions", "Image", columns, rows)


def _present(labels: Mapping[str, str], rows: Iterable[Mapping[str, object]]) -> dict[str, str]:
    """Keep the labels that some row has a value for."""
    names = {name for row in rows for name in row}
    return {name: label for name, label in labels.items() if name in names}


def _best(scores: Mapping[str, Mapping[str, Estimate]], metric: str) -> str | None:
    """Name the captioner with the highest value, the upper bound left out."""
    values = {
        name: row[metric].value
        for name, row in scores.items()
        if name != BOUND and metric in row and math.isfinite(row[metric].value)
    }
    return max(values, key=values.__getitem__) if len(values) > 1 else None


def _route(name: str) -> tuple[str, str]:
    return ROUTES.get(name, (name, ""))


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
