"""Plots of a study: the points by hand, the files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gmail_align.errors import ConfigError
from gmail_align.studies.language import Plot, study_of
from gmail_align.studies.plots import plot_files, points_of
from gmail_align.studies.result import Number, ShownColumn, ShownRow, StudyResult
from gmail_align.studies.tables import files_of


def _row(name: str, place: float | None, value: float | None) -> ShownRow:
    values = {"real": Number(value=place), "CIDEr": Number(value=value, low=0.1, high=0.9)}
    known = {key: one for key, one in values.items() if one.value is not None}
    return ShownRow(name=name, label=name, values=known)


def _result(*plots: Plot) -> StudyResult:
    return StudyResult(
        study="mine",
        title="Mine",
        scale="tabletop",
        columns=(
            ShownColumn(name="real", label="Real images", unit="count"),
            ShownColumn(name="CIDEr", label="CIDEr"),
        ),
        rows=(
            _row("a", 200.0, 0.5),
            _row("b", 0.0, 0.3),
            _row("c", None, 0.4),
            _row("d", 5.0, None),
        ),
        plots=plots,
    )


PLOT = Plot(x="real", y="CIDEr", lines={"ours": ("a", "b", "c", "d"), "other": ("c",)})


def test_points_are_those_of_the_table_in_order() -> None:
    points = points_of(_result(PLOT), PLOT)
    assert [(place, one.value) for place, one in points["ours"]] == [(0.0, 0.3), (200.0, 0.5)]
    assert points["other"] == []


def test_a_plot_is_two_files_and_a_picture_on_the_page() -> None:
    files = files_of(_result(PLOT))
    assert files["mine-plot-1.png"].startswith(b"\x89PNG")
    assert b"<svg" in files["mine-plot-1.svg"]
    assert b'<img src="data:image/png;base64,' in files["index.html"]
    assert plot_files(_result(PLOT)) == {n: f for n, f in files.items() if "-plot-" in n}
    nothing = Plot(x="real", y="CIDEr", lines={"other": ("c",)})
    assert plot_files(_result(nothing)) == {}


def test_results_without_plots_are_what_they_were(tmp_path: Path) -> None:
    _result().write(tmp_path / "result.json")
    assert "plots" not in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(
    ("changes", "named"), [({"x": "rael"}, "real"), ({"lines": {"ours": ["aa"]}}, "'a'")]
)
def test_a_plot_of_what_does_not_exist_is_refused(changes: dict[str, Any], named: str) -> None:
    tables = {
        "title": "Mine",
        "column": [{"name": "real"}, {"name": "CIDEr"}],
        "row": [{"name": "a"}],
        "plot": [{"x": "real", "y": "CIDEr", "lines": {"ours": ["a"]}} | changes],
        "scale": {"tabletop": {"base": "smoke"}},
    }
    with pytest.raises(ConfigError, match=named):
        study_of("mine", tables)
