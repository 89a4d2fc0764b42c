"""What a finished run prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmail_align.cli.runs import _show_rows
from gmail_align.cli.shared import Shared
from gmail_align.report.outcome import outcome_lines

CIDER = {"value": 1.25, "low": 1.0, "high": 1.5, "n": 24}
RESULT = {
    "rows": [
        {"label": "raw", "real_images": 0, "metrics": {"CIDEr": CIDER, "WMD": CIDER}},
        {"label": "real images", "real_images": 24, "metrics": {"CIDEr": CIDER | {"low": None}}},
    ],
    "claims": [
        {"name": "more is better", "metric": "CIDEr", "verdict": "holds", "difference": CIDER},
        {"name": "less is better", "metric": "SPICE", "verdict": "not tested", "difference": None},
    ],
    "encoders": [
        {"name": "frozen 0"},
        {"name": "gmail", "applied": [False], "refusals": ["no step raised the held-out transfer"]},
    ],
    "unavailable": {"SPICE": "its jars are missing"},
    "report": "work/report/index.html",
    "seeds": 1,
}


def test_a_run_ends_with_its_table_and_the_next_command():
    lines = outcome_lines(RESULT, "gmail-align demo --seeds 5", "gmail-align init .")
    assert lines.splitlines() == [
        "             real images  CIDEr",
        "raw          0            1.250 [1.000, 1.500]",
        "real images  24           1.250",
        "gmail: no step raised the held-out transfer",
        "more is better: holds (CIDEr +1.250 [1.000, 1.500])",
        "less is better: not tested",
        "SPICE is not available: its jars are missing",
        "report: work/report/index.html",
        "one seed decides little; five do: gmail-align demo --seeds 5",
        "next: gmail-align init .",
    ]


def test_rows_without_scores_leave_the_table_out():
    rows = [{"label": "none", "real_images": 0, "metrics": {}}]
    nothing = {"rows": rows, "claims": [], "encoders": [], "unavailable": {}}
    lines = outcome_lines(RESULT | nothing, "a", "b")
    assert lines.splitlines() == ["report: work/report/index.html", "next: b"]


def test_refusals_of_several_seeds_are_counted():
    encoder = {"name": "gmail", "applied": [True, False, False], "refusals": ["noise", "harm"]}
    lines = outcome_lines(RESULT | {"encoders": [encoder]}, "a", "b")
    assert "gmail was not applied in 2 of 3 seeds: noise" in lines.splitlines()


def test_a_dry_run_names_shared_steps_once(capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"what": "captions", "folder": "captions/1"}
    own = {"what": "features", "folder": "features/2"}
    index = {"raw": [shared], "gmail": [shared, own], "none": []}
    _show_rows(Shared(), "run", Path("runs/x"), index)
    assert capsys.readouterr().out.splitlines() == [
        "# would run into runs/x",
        "every row uses:",
        "  captions: captions/1",
        "raw uses nothing more",
        "gmail uses:",
        "  features: features/2",
        "none uses nothing more",
    ]
    _show_rows(Shared(json=True), "run", Path("runs/x"), index)
    assert json.loads(capsys.readouterr().out)["rows"] == index


def test_a_run_that_trains_no_learner_shows_its_encoders() -> None:
    half = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    encoders = [
        {"name": "frozen", "retrieval": {"flickr8k": {"i2t_r1": half, "t2i_r1": half}}},
        {"name": "gmail", "zeroshot": {"colour": half}, "applied": [True]},
    ]
    rows = [{"label": "raw", "real_images": 0, "metrics": {}}]
    lines = outcome_lines(RESULT | {"rows": rows, "encoders": encoders}, "a", "b").splitlines()
    assert lines[:4] == [
        "                             frozen                gmail",
        "flickr8k R@1, image to text  0.500 [0.250, 0.750]  -",
        "flickr8k R@1, text to image  0.500 [0.250, 0.750]  -",
        "colour                       -                     0.500 [0.250, 0.750]",
    ]
