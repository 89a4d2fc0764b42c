"""A study at its smallest, from its file to its tables; and tables from results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

from gmail_align.cli.main import app
from gmail_align.errors import ArtifactError, ConfigError
from gmail_align.studies import real
from gmail_align.studies.numbers import detectable, mean_over
from gmail_align.studies.result import RESULT, Number, ShownRow, StudyResult, read_study_result
from gmail_align.studies.run import StudyOptions, numbers_of
from gmail_align.studies.tables import claims_table, files_of, render, study_table
from gmail_align.workflow.summary import verdict_of
from worlds.browser import CHROMIUM, browser

TINY = """
title = "A tiny study"
number = "Table 0"
report = true
column = [
    { name = "t2i", label = "Retrieval", metric = "t2i_r1" },
    { name = "floor", metric = { tabletop = "tabletop_floor/accuracy", paper = "dtd/accuracy" } },
    { name = "cars", metric = { paper = "stanford_cars/accuracy" } },
    { name = "paired_cosine", unit = "plain" },
    { name = "text", metric = "text_cosine_real", unit = "plain" },
    { name = "real", metric = "real_images", unit = "count" },
    { name = "tflop", unit = "plain" },
]
[scale.tabletop]
base = "smoke"
seeds = 2
data.train = { images = 12 }
data.validation = { images = 8 }
data.test = { images = 8 }
generator = { steps = 1 }
align.short = { like = "gmail", optim = { steps = 2 } }
[evaluate]
gap_texts = true
[align.shift]
method = "mean_shift"
apply = "always"
[[row]]
name = "frozen"
paper = { t2i = 50.0 }
status = "matched source"
[[row]]
name = "shift"
label = "Shifted <means>"
mark = "ours"
align = "shift"
paper = { t2i = 53.5 }
[[row]]
name = "short"
align = "short"
[[row]]
name = "llava"
missing = "Recipes do not have this learner."
[[claim]]
name = "a shift helps retrieval"
better = "shift"
worse = "frozen"
metric = "t2i_r1"
[[claim]]
name = "an adapter helps floors"
better = "short"
worse = "frozen"
metric = "tabletop_floor/accuracy"
[[claim]]
name = "a shift closes the gap"
better = "shift"
worse = "frozen"
metric = "paired_cosine"
[[claim]]
name = "an adapter widens the margin"
better = "short"
worse = "frozen"
metric = "margin"
[[claim]]
name = "llava is better"
better = "llava"
worse = "frozen"
"""


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["study", *map(str, words)])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("studies")
    (folder / "tiny.toml").write_text(TINY)
    words = (folder / "tiny.toml", "--work", folder / "work", "--jobs", 1, "--json")
    first = call(*words)
    assert first.exit_code == 0, first.stderr
    again = call(*words)
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert "complete" in again.stderr
    return folder / "work" / "studies" / "tabletop" / "tiny", json.loads(first.stdout)


def test_a_study_runs_from_its_file_to_its_tables(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, shown = ran
    result = read_study_result(folder / RESULT)
    assert shown["fingerprint"] == result.fingerprint
    assert "t-SNE" in (folder / "report" / "index.html").read_text()
    assert [column.name for column in result.columns] == [
        *("t2i", "floor", "paired_cosine", "text", "real", "tflop")
    ]
    frozen, shift, short, llava = result.rows
    assert frozen.values["real"].value == 0 and shift.values["real"].value == 12
    assert short.values["tflop"].value > frozen.values["tflop"].value == 0
    assert 0 <= shift.values["t2i"].low <= shift.values["t2i"].value <= 1
    assert shift.values["paired_cosine"].value > frozen.values["paired_cosine"].value
    assert frozen.values["text"] == shift.values["text"] and frozen.values["text"].value < 1
    assert llava.values == {} and "learner" in llava.note
    for name in ("t2i", "floor", "paired_cosine"):
        assert np.mean(shift.seeds[name]) == pytest.approx(shift.values[name].value, abs=1e-6)
        assert len(shift.seeds[name]) == 2
    verdicts = [claim.verdict for claim in result.claims]
    assert verdicts[4] == "not tested" and "not tested" not in verdicts[:4]
    closer = shift.values["paired_cosine"].value - frozen.values["paired_cosine"].value
    assert result.claims[2].difference.value == pytest.approx(closer, abs=1e-6)
    assert result.claims[2].difference.low < closer < result.claims[2].difference.high
    by_seed = result.claims[3].difference  # the margin is no mean over images
    assert by_seed.n == 2 and by_seed.low < by_seed.value < by_seed.high
    assert result.claims[0].paper == 3.5 and result.claims[0].difference.n == 8


def test_its_files_are_those_of_its_result(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ran
    files = files_of(read_study_result(folder / RESULT))
    assert {name.rpartition(".")[2] for name in files} == {"md", "tex", "csv", "html"}
    assert {name: (folder / name).read_bytes() for name in files} == files
    page = files["index.html"].decode()
    assert "Shifted &lt;means&gt;" in page and "http" not in page.replace("http-equiv", "")


def test_the_list_says_what_ran_and_what_is_left(tmp_path: Path) -> None:
    listed = call("list", "--work", tmp_path, "--seeds", 1, "--json")
    rows = {row["name"]: row for row in json.loads(listed.stdout)["studies"]}
    assert not rows["table-9"]["ran"]
    assert rows["table-9"]["steps_to_make"] == rows["table-9"]["steps"] > 50
    assert rows["table-9"]["tflop_to_pay"] > rows["table-6"]["tflop_to_pay"] > 0


def test_the_papers_scale_prints_its_plan_where_data_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = call("table-6", "--scale", "paper", "--json")
    assert made.exit_code == 0, made.stderr
    (plan,) = json.loads(made.stdout)["plans"]
    assert plan["gpu_hours"] is None or plan["gpu_hours"] > 0
    assert any("data" in need["what"] for need in plan["needs"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("tabel-6",), "table-6"),
        (("table-6", "--data", "somewhere"), "--data"),
        (("all", "--out", "somewhere"), "--work"),
    ],
)
def test_what_cannot_be_asked_for_is_named(words: tuple[str, ...], named: str) -> None:
    refused = call(*words)
    assert refused.exit_code == 2
    assert named in refused.stderr


def test_a_study_of_real_data_is_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: tuple[Path, dict[str, Any]]
) -> None:
    result = read_study_result(ran[0] / RESULT)
    monkeypatch.setitem(real.DATA_STUDIES, "mine", real.DataStudy("My photos", "tables:heading"))
    with pytest.raises(ConfigError, match="--data"):
        real.run_data_study("mine", StudyOptions())
    monkeypatch.setattr("gmail_align.studies.tables.heading", lambda data, options: result)
    assert real.run_data_study("mine", StudyOptions(data=tmp_path)) == result


def made_result(**changes: Any) -> StudyResult:
    body = {
        "study": "mine",
        "title": "Mine",
        "scale": "tabletop",
        "seeds": 5,
        "columns": [{"name": "CIDEr", "label": "CIDEr", "metric": "CIDEr"}],
        "rows": [
            {
                "name": "a",
                "label": "A",
                "values": {"CIDEr": {"value": 1.25, "low": 1, "high": 1.5}},
            },
            {"name": "b", "label": "B", "paper": {"CIDEr": 108.35}},
        ],
        "claims": [
            {
                "name": "A beats B",
                "better": "a",
                "worse": "b",
                "metric": "CIDEr",
                "verdict": "reversed",
                "difference": {"value": -0.5, "low": -0.75, "high": -0.25, "n": 10},
                "paper": 4.18,
            }
        ],
    }
    return StudyResult.model_validate({**body, **changes})


def test_ours_and_the_papers_numbers_stand_side_by_side() -> None:
    table = study_table(made_result())
    assert [column.label for column in table.columns] == [
        *("CIDEr ×100", "CIDEr, paper", "Paper's numbers")
    ]
    cells = [[cell.text for cell in table.shown(row)] for row in table.rows]
    assert cells == [["125.0", "–", ""], ["–", "108.35", ""]]
    (claim,) = claims_table(made_result()).rows
    assert [cell.text for cell in claims_table(made_result()).shown(claim)] == [
        *("CIDEr", "−50.0", "33.9", "+4.18", "reversed")
    ]


def test_a_claim_says_what_a_study_of_its_size_shows() -> None:
    rows = [
        {"name": name, "label": name, "seeds": {"CIDEr": values}}
        for name, values in (("a", [0.1, 0.3, 0.2, 0.4, 0.0]), ("b", [0.0] * 5))
    ]
    claim = {"name": "A beats B", "better": "a", "worse": "b", "metric": "CIDEr"}
    shown = []
    for low, high in ((0.19, 0.21), (-0.5, 0.5), (0.2, 0.2)):
        difference = {"value": 0.2, "low": low, "high": high}
        claims = [{**claim, "verdict": "holds", "difference": difference}]
        table = claims_table(made_result(rows=rows, claims=claims))
        shown.append(table.shown(table.rows[0])[2].text)
    assert shown == ["26.6", "67.7", "–"]  # seeds are less sure, the interval is, nothing varies


def test_what_is_detectable_is_found_in_four_of_five_worlds() -> None:
    differences, rng = [0.1, 0.3, 0.2, 0.4, 0.0], np.random.default_rng(0)
    own = mean_over(differences)
    effect = detectable((own.high - own.low) / 2, 5)
    worlds = rng.normal(effect, np.std(differences, ddof=1), (4000, 5))
    found = (ttest_1samp(worlds, 0, axis=1).pvalue < 0.05) & (worlds.mean(axis=1) > 0)
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_each_number_of_a_row_has_its_own_status() -> None:
    both = {"a": "matched source", "b": "no match found"}
    row = ShownRow(name="r", label="R", paper={"a": 1.0, "b": 2.0}, status=both)
    columns = [{"name": "a", "label": "First"}, {"name": "b", "label": "Second"}]
    (shown,) = study_table(made_result(rows=[row], columns=columns, claims=[])).rows
    assert shown.cells[-1] == "First: matched source; Second: no match found"


def test_a_difference_by_rounding_alone_decides_nothing() -> None:
    for sign in (1, -1):
        small, low, high = (sign * one for one in (1e-16, 1e-17, 1e-15))
        rounding = {"value": small, "low": min(low, high), "high": max(low, high)}
        assert verdict_of(rounding) == "not significant"
    assert verdict_of({"value": 0.2, "low": 0.1, "high": 0.3}) == "holds"


def test_a_book_counts_verdicts_and_lists_its_studies() -> None:
    page = render([made_result(), made_result(study="other", title="Other")], "All", "Both.")
    assert 'href="#mine"' in page and 'id="other"' in page
    assert "<b>2</b> reversed" in page
    assert page.count('<figure class="intervals') == 2 and "100.0–150.0" in page
    assert len(page) < 100_000


def test_a_result_that_was_changed_is_refused(tmp_path: Path) -> None:
    made_result().write(tmp_path / RESULT)
    assert read_study_result(tmp_path / RESULT) == made_result()
    text = (tmp_path / RESULT).read_text()
    (tmp_path / RESULT).write_text(text.replace("1.25", "1.35"))
    with pytest.raises(ArtifactError, match="changed"):
        read_study_result(tmp_path / RESULT)
    (tmp_path / RESULT).write_text("{}")
    with pytest.raises(ArtifactError, match=RESULT):
        read_study_result(tmp_path / RESULT)


def test_numbers_have_the_names_that_columns_use() -> None:
    est = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    row = {
        "metrics": {"CIDEr": est},
        "encoder": {
            "gap": {"margin": est},
            "retrieval": {"coco": {"t2i_r1": est}, "flickr": {"t2i_r1": {**est, "value": 0.7}}},
            "zeroshot": {"dtd": est},
        },
        "real_images": 3,
        "generated_images": 4,
        "steps": 5,
        "steps_kept": 2,
        "seconds": 1.0,
        "memory_gb": 0.5,
    }
    numbers = numbers_of(row, 7.0)
    assert numbers["t2i_r1"] == numbers["coco/t2i_r1"] == est
    assert numbers["flickr/t2i_r1"]["value"] == 0.7
    assert {"CIDEr", "margin", "dtd/accuracy"} <= set(numbers)
    assert Number(**numbers["tflop"]).value == 7.0


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_book_opens_and_fits_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "book.html"
    path.write_text(render([made_result(), made_result(study="other")], "All", "Both."))
    with browser(tmp_path / "profile") as page:
        page.open(path.as_uri(), width=390)
        assert page.console == []
        assert page.value("document.documentElement.scrollWidth") <= 390
        assert page.value("document.querySelectorAll('table').length") == 5
