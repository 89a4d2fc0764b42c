"""The page of a gap: one HTML file with its tables and figures, from a result and its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gmail_align.artifacts import write_bytes
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report import charts
from gmail_align.report.data import Embeddings, PairFigure, ReportData, estimate, section
from gmail_align.report.explore import explorer
from gmail_align.report.figures import all_figures
from gmail_align.report.gap_names import GAP_MEASURES, GROUP_COLUMNS, LABELS
from gmail_align.report.gap_pictures import ClassPictures, GapImages, class_pictures, in_pairs
from gmail_align.report.names import PLAIN
from gmail_align.report.numbers import count
from gmail_align.report.page import PAGE
from gmail_align.report.projection import MOST, Projection, project, project_pca
from gmail_align.report.tables import Cell, Column, Row, Table
from gmail_align.report.templating import environment, script

_TITLE: Final = "The gap between real and generated images"
_VERDICTS: Final = {
    "train_as_is": "Train as is.",
    "align_first": "Align first.",
    "too_far": "The generator is too far.",
    "cannot_tell": "Nothing can be said.",
}


def write_gap_report(
    result: Mapping[str, Any],
    sides: tuple[Any, Any],
    out: Path,
    *,
    images: GapImages | None = None,
    command: str = "",
) -> Path:
    """Write ``out/index.html``, ``out/tables/`` and ``out/figures/``; the page last.

    Args:
        result: What the gap stage wrote, of artifacts or of files.
        sides: (n, d) features of real and (m, d) of generated images, for the pictures.
        out: Folder to write to; created when absent.
        images: The images behind the rows of ``sides``, where they are at hand.
        command: The command line that makes the same page again.

    Returns:
        The path of the page.

    Raises:
        DataError: a part of the result is malformed.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    tables = gap_tables(result)
    pairs: list[PairFigure] = []
    shown = _thinned(sides[0]), _thinned(sides[1])
    if images is not None and images.pairs:
        pairs, *both = in_pairs(images, *(np.asarray(side, np.float32) for side in sides))
        shown = both[0], both[1]
    maps = _maps(*shown)
    files = {f"tables/{name}": file for t in tables.values() for name, file in t.files().items()}
    drawn = all_figures(ReportData(_TITLE), maps)
    files |= {f"figures/{name}": file for name, file in drawn.items()}
    view = {
        **_view(result, tables),
        **_pair_view(pairs, shown, maps),
        "pictures": [] if images is None else _class_pictures(images, sides, tables),
        "command": command,
    }
    if images is not None and images.encoder:
        view["provenance"] = {"encoder": images.encoder, **view["provenance"]}
    page = str(environment().get_template("gap.html").render(**view))
    for name, file in files.items():
        write_bytes(out / name, file)
    write_bytes(out / PAGE, page.encode("utf-8", "replace"))
    return out / PAGE


def gap_tables(result: Mapping[str, Any]) -> dict[str, Table]:
    """Return the tables that the result has rows for, by name."""
    metrics = gap_estimates(result)
    floor = section(result, "floor")
    groups = section(result, "groups")
    tables = [_measures(metrics, floor, _number_of(result) // 2)]
    tables += [_groups(what, groups[what]) for what in ("classes", "generators") if what in groups]
    return {table.stem: table for table in tables if table.rows}


def gap_estimates(result: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the estimates of a result, by metric."""
    intervals = section(result, "intervals")
    metrics = {}
    for name, value in section(result, "metrics").items():
        low, high = intervals.get(name, (None, None))
        whole = {"value": value, "low": low, "high": high, "n": _number_of(result)}
        metrics[name] = estimate(whole, f"metrics.{name}")
    return metrics


def _number_of(result: Mapping[str, Any]) -> int:
    """Return how many pairs, or images of each kind, were measured."""
    return int(max(section(result, "n").values(), default=0))


def _measures(metrics: Mapping[str, Estimate], floor: Mapping[str, Any], half: int) -> Table:
    """Lay out every measure with what it means, which way is closer, and what chance alone does."""
    rows = []
    for name, measure in GAP_MEASURES.items():
        if name not in metrics:
            continue
        chance = floor.get(name)
        cells: list[Cell] = [
            metrics[name],
            None if chance is None else f"{chance * measure.unit.scale:.{measure.unit.digits}f}",
            measure.closer,
        ]
        rows.append(Row(measure.label, cells, measure.meaning, unit=measure.unit))
    columns = [
        Column("Measured (95% interval)", PLAIN),
        Column("Real against real"),
        Column("Closer is", text=True),
    ]
    note = (
        "Real against real: the same distance between two random halves of the real images, "
        f"{count(half)} each; a Fréchet distance is larger on fewer images."
    )
    return Table("gap", "Every measure", "Measure", columns, rows, note, detailed=True)


def _groups(what: str, groups: Mapping[str, Any]) -> Table:
    """Lay out one part of the groups, the farthest first."""
    measured = {name: own for name, own in groups.items() if own["metrics"]}
    shown = [
        name for name in GROUP_COLUMNS if any(name in own["metrics"] for own in measured.values())
    ]
    order = sorted(groups, key=lambda name: -_farness(groups[name]))
    rows = []
    for name in order:
        own = groups[name]
        cells: list[Cell] = [own["real"], own["generated"]]
        for key in shown:
            value = own["metrics"].get(key)
            cells.append(None if value is None else estimate(value, f"{what}.{name}.{key}"))
        rows.append(Row(name, cells))
    columns = [Column("Real"), Column("Generated")]
    columns += [Column(label, unit) for label, unit in (GROUP_COLUMNS[name] for name in shown)]
    return Table(what, LABELS[what][0], LABELS[what][1], columns, rows)


def _farness(group: Mapping[str, Any]) -> float:
    distance = group["metrics"].get("cmmd")
    return -1.0 if distance is None else float(distance["value"])


def _maps(real: Embeddings, generated: Embeddings) -> dict[str, Projection]:
    """Lay both sides out by PCA and by t-SNE; one dimension has no plane."""
    if real.shape[1] < 2:
        return {}
    maps = {"PCA": project_pca(real, generated), "t-SNE": project(real, generated)}
    return {name: one for name, one in maps.items() if one is not None}


def _thinned(side: Any) -> Embeddings:
    """Return at most some thousand evenly spaced rows as numbers, whatever the file holds."""
    step = max(1, len(side) // (10 * MOST))
    rows: Embeddings = np.asarray(side[::step], dtype=np.float32)
    return rows


def _pair_view(
    pairs: Sequence[PairFigure],
    shown: tuple[Embeddings, Embeddings],
    maps: Mapping[str, Projection],
) -> dict[str, Any]:
    """Return the maps, and the pairs behind their points where there are pairs."""
    shown_pairs = explorer(pairs, {"these features": shown})
    clouds = [charts.cloud(name, one, linked=bool(shown_pairs)) for name, one in maps.items()]
    return {"clouds": clouds, "explorer": shown_pairs}


def _class_pictures(
    images: GapImages, sides: tuple[Any, Any], tables: Mapping[str, Table]
) -> list[ClassPictures]:
    """Return the images of each class, in the order of the table of classes."""
    order = [row.label for row in tables["classes"].rows] if "classes" in tables else []
    order = order or sorted(set(images.real.classes.values()))
    real, generated = (np.asarray(side, dtype=np.float32) for side in sides)
    return class_pictures(images, real, generated, order)


def _view(result: Mapping[str, Any], tables: Mapping[str, Table]) -> dict[str, Any]:
    """Return what the template shows of a result, by name."""
    advice = section(result, "advice")
    paired = result.get("protocol") == "gap_paired"
    sentence = str(advice.get("sentence", ""))
    return {
        "title": _TITLE,
        "lead": _VERDICTS.get(str(advice.get("verdict")), ""),
        "sentence": sentence.partition(": ")[2][:1].upper() + sentence.partition(": ")[2][1:],
        "verdict": advice.get("verdict"),
        "thresholds": section(result, "advice", "thresholds"),
        "standfirst": f"Measured on {count(_number_of(result))} "
        + ("pairs of a real and a generated image." if paired else "images of each kind."),
        "tables": tables,
        "script": script(),
        "unavailable": section(result, "unavailable"),
        "provenance": _provenance(result),
        "box": charts,
    }


def _provenance(result: Mapping[str, Any]) -> dict[str, str]:
    """Say what the numbers rest on."""
    provenance = {"protocol": str(result.get("protocol", "")), "n": str(_number_of(result))}
    if result.get("seed") is not None:
        provenance["seed"] = str(result["seed"])
    for side, made in section(result, "features").items():
        provenance[f"{side} features"] = ", ".join(f"{key} {value}" for key, value in made.items())
    for side, digest in section(result, "fingerprints").items():
        provenance[f"{side} fingerprint"] = str(digest)
    return provenance
