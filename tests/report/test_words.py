from __future__ import annotations

from typing import Any

import pytest

from gmail_align.report import words
from gmail_align.report.data import ReportData

from .conftest import claim, est, full_result, rows


def described(difference: Any, verdict: str) -> str:
    claims = [claim("gmail", "raw", difference, verdict)]
    (finding,) = words.findings({"rows": rows(), "claims": claims})
    return f"{finding.lead} {finding.text}"


def test_a_gain_is_a_gain() -> None:
    text = described(est(0.05, 0.02), "holds")
    assert text.startswith("gmail beats raw: holds, by one seed.")
    assert "more than Row raw" in text and "+3.0\u00a0to\u00a0+7.0" in text
    assert "40 real test images" in text


def test_a_loss_is_a_loss() -> None:
    text = described(est(-0.05, 0.02), "reversed")
    assert "the opposite holds" in text and "5.0 CIDEr points less than Row raw" in text


@pytest.mark.parametrize("value", [0.01, -0.01, 0.02, 0.0])
def test_an_interval_that_touches_zero_decides_nothing(value: float) -> None:
    interval = {"value": value, "low": min(value - 0.02, 0), "high": 0.03, "n": 9}
    text = described(interval, "not significant")
    assert "no clear difference" in text and "includes zero" in text


def test_without_a_pairing_nothing_is_claimed() -> None:
    assert "not tested" in described(None, "not tested")
    assert words.findings({"rows": rows()})[0].lead == "Nothing is claimed."
    assert words.findings({}) == []


def test_every_claim_is_described_in_order() -> None:
    leads = [finding.lead for finding in words.findings(full_result())]
    assert [lead.rpartition(": ")[2] for lead in leads] == [
        "holds, by one seed.",
        "no clear difference.",
        "the opposite holds, by one seed.",
    ]


def test_the_gap_is_described_by_its_margin() -> None:
    result = full_result()
    assert "stand out more" in words.gap_summary(result)
    result["encoders"][1]["gap"]["margin"] = est(0.4)
    assert "did not close the gap" in words.gap_summary(result)
    del result["encoders"][1]
    assert words.gap_summary(result) == ""


def test_the_guard_tells_when_nothing_helped() -> None:
    kept, refused = words.guard_notes(full_result())
    assert kept == "gmail: step 20 of 30 was the best and was kept."
    assert "control: no step of 900 was clearly better than none" in refused
    result = full_result()
    result["encoders"][2]["refusals"] = ["the best step does not beat a shift"]
    assert words.guard_notes(result)[1] == "control: the best step does not beat a shift."


@pytest.mark.parametrize(("applied", "said"), [(True, "applied"), (False, "not applied")])
def test_a_map_is_not_told_as_a_step(applied: bool, said: str) -> None:
    result = full_result()
    result["encoders"][1] |= {"steps": 0, "best_steps": [int(applied)], "applied": [applied]}
    note = next(note for note in words.guard_notes(result) if "map" in note)
    assert said in note and "step" not in note


def test_limits_tell_seeds_and_what_is_missing() -> None:
    notes = words.limits(ReportData("t", result=full_result() | {"limits": ["Small."]}))
    assert any(note.startswith("One seed (0)") for note in notes)
    assert "SPICE is missing: no jar" in notes and "Small." in notes
    assert any(note.startswith("Row real is a bound") for note in notes)
    notes = words.limits(ReportData("t", result={"seed": 0, "seeds": 3}))
    assert notes[0].startswith("3 seeds")


def test_the_standfirst_counts() -> None:
    assert words.standfirst(full_result()).startswith("Six rows were judged on the same 40")
    assert "One row" in words.standfirst({"rows": rows()[:1]})


def test_an_alignment_that_was_not_applied_is_said_in_its_claims() -> None:
    result = full_result()
    result["rows"][1]["align"] = "control"
    texts = [finding.text for finding in words.findings(result)]
    assert ["did not apply control" in text for text in texts] == [False, True, False]


def test_measures_that_came_nearer_and_farther_are_named() -> None:
    result = full_result()
    gap = {"paired_cosine": 0.5, "unpaired_cosine": 0.5, "probe_auc": 0.8, "norm_ratio": 1.2}
    after = {"paired_cosine": 0.6, "unpaired_cosine": 0.6, "probe_auc": 0.8, "norm_ratio": 0.9}
    result["encoders"] = [
        {"name": "frozen", "gap": {name: est(value) for name, value in gap.items()}},
        {"name": "gmail", "gap": {name: est(value) for name, value in after.items()}},
    ]
    assert words.moved_measures(result) == [
        "gmail: nearer: Paired cosine, Norm ratio; farther: Unpaired cosine."
    ]


def test_equal_scores_before_and_after_are_explained() -> None:
    result = full_result()
    result["encoders"] = result["encoders"][:2]
    assert "frozen encoder" in words.same_routes(result)
    result["encoders"][1]["zeroshot"] = {"colour": est(0.7)}
    assert words.same_routes(result) == ""


def test_the_ceiling_is_the_bound_and_the_best_other_row() -> None:
    text = words.ceiling(full_result())  # the bound has 0.85, the best other row 0.80
    assert "Row real, 85.0" in text and "Row real_scarce, reaches 94%" in text
    result = full_result()
    result["rows"][-1]["metrics"]["CIDEr"] = est(0.1)
    assert "too small to show the ceiling" in words.ceiling(result)
    result = full_result()
    result["rows"][-1]["mark"] = ""
    assert words.ceiling(result) == ""


def test_several_seeds_are_counted_in_the_lead() -> None:
    lead = words.findings({**full_result(), "seeds": 5})[0].lead
    assert lead.endswith("holds, by 5 seeds.")
