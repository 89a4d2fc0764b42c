from __future__ import annotations

from typing import Any

import pytest

from gmail_align.report import words
from gmail_align.report.data import Curve, ReportData

from .conftest import captioning, est, full_result


def outcome(found: Any) -> str:
    paired = {"gmail_minus_raw": {"CIDEr": found}}
    told = words.verdict({"captioning": captioning(), "paired": paired})
    assert told is not None
    return f"{told.lead} {told.text}"


def test_a_gain_is_a_gain() -> None:
    text = outcome(est(0.05, 0.02))
    assert text.startswith("GMAIL gained 5.0 CIDEr points.")
    assert "higher" in text and "+3.0\u00a0to\u00a0+7.0" in text and "40 real test images" in text


def test_a_loss_is_a_loss() -> None:
    text = outcome(est(-0.05, 0.02))
    assert text.startswith("GMAIL lost 5.0 CIDEr points.")
    assert "lower" in text and "did harm" in text


@pytest.mark.parametrize("value", [0.01, -0.01, 0.02, 0.0])
def test_an_interval_that_touches_zero_decides_nothing(value: float) -> None:
    text = outcome({"value": value, "low": min(value - 0.02, 0), "high": 0.03, "n": 9})
    assert text.startswith("No clear difference.")
    assert "includes zero" in text


def test_without_a_pairing_nothing_is_claimed() -> None:
    told = words.verdict({"captioning": captioning()})
    assert told is not None and told.lead == "Not compared."
    assert words.verdict({}) is None
    assert "chance alone" in outcome(0.05)


def test_asides_name_control_and_scarce_real() -> None:
    leads = {aside.lead: aside.text for aside in words.asides(full_result())}
    assert "not clearly apart" in leads["Against the control"]
    assert "points less than training on just those" in leads["With a fifth of the real images"]


def test_the_gap_is_told_by_its_margin() -> None:
    result = full_result()
    assert "stand out more" in words.gap_summary(result)
    result["gap"]["after"]["margin"] = est(0.4)
    assert "did not close the gap" in words.gap_summary(result)
    del result["gap"]["after"]
    assert words.gap_summary(result) == ""


def test_the_guard_tells_when_nothing_helped() -> None:
    curve = Curve(losses=[{"step": 900.0, "total": 1.0}])
    data = ReportData("t", result=full_result(), curves={"generated_lora_only": curve})
    kept, refused = words.guard_notes(data)
    assert kept == "GMAIL: step 20 of 30 was the best and was kept."
    assert "no step of 900 was better than none" in refused


def test_limits_tell_seeds_and_what_is_missing() -> None:
    notes = words.limits(ReportData("t", result=full_result() | {"limits": ["Small."]}))
    assert any(note.startswith("One seed (0)") for note in notes)
    assert "SPICE is missing: no jar" in notes and "Small." in notes
    notes = words.limits(ReportData("t", result={"seed": 0, "seeds": 3}))
    assert notes[0].startswith("3 seeds")


def test_the_standfirst_counts() -> None:
    assert words.standfirst(full_result()).startswith("Six captioners were judged on the same 40")
    assert "One captioner" in words.standfirst({"captioning": {"real": {}}})
