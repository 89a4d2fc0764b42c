from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmail_align.errors import DataError
from gmail_align.report.gap import gap_estimates, gap_tables, write_gap_report
from gmail_align.report.projection import project, project_pca

RNG = np.random.default_rng(0)
SIDES = RNG.normal(size=(30, 5)), RNG.normal(size=(25, 5)) + 1


def entry(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 25}


def result(**changes: Any) -> dict[str, Any]:
    group = {"real": 9, "generated": 8, "metrics": {"probe_auc": entry(0.9), "cmmd": entry(0.3)}}
    few = {"real": 1, "generated": 2, "metrics": {}}
    near = {**group, "metrics": {**group["metrics"], "cmmd": entry(0.2)}}
    return {
        "protocol": "gap_unpaired",
        "n": {"images": 25},
        "seed": 0,
        "metrics": {"probe_auc": 0.9, "cmmd": 0.25, "frechet_distance": 1.0},
        "intervals": {"probe_auc": [0.8, 1.0], "cmmd": [0.15, 0.35]},
        "floor": {"cmmd": 0.01},
        "groups": {
            "classes": {"<script>alert(1)</script>": few, "near & dear": near, "far": group}
        },
        "unavailable": {"margin": "give <b>pairs</b>"},
        "advice": {
            "verdict": "align_first",
            "sentence": "Align first: a linear probe tells them apart.",
            "thresholds": {"near": 0.8, "far": 0.15, "indistinguishable": 0.6},
        },
        "fingerprints": {"real": "abc"},
        **changes,
    }


def test_the_page_stands_alone_and_escapes_names(tmp_path: Path) -> None:
    page = write_gap_report(result(), SIDES, tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)" in page
    assert "near &amp; dear" in page and "give &lt;b&gt;pairs" in page
    assert "<strong>Align first.</strong> A linear probe tells them apart." in page
    assert re.search(r'(src|href)="(?!data:)', page) is None
    assert "default-src 'none'" in page
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "embeddings.png",
        "embeddings.svg",
    }
    assert {path.stem for path in (tmp_path / "out" / "tables").iterdir()} == {"gap", "classes"}


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gap_report(result(), SIDES, tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(files) == 9
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_groups_are_listed_from_the_farthest(tmp_path: Path) -> None:
    rows = gap_tables(result())["classes"].rows
    assert [row.label for row in rows] == ["far", "near & dear", "<script>alert(1)</script>"]
    assert rows[-1].cells[:2] == [1, 2] and rows[-1].cells[2:] == [None, None]


def test_intervals_stand_next_to_their_metrics(tmp_path: Path) -> None:
    plain = result(metrics={"probe_auc": 0.9, "cmmd": 0.2}, intervals={"probe_auc": [0.8, 0.95]})
    actual = gap_estimates(plain)
    assert (actual["probe_auc"].low, actual["probe_auc"].high) == (0.8, 0.95)
    assert np.isnan(actual["cmmd"].low)
    assert "0.01" in gap_tables(plain)["gap"].rows[1].cells[1]
    page = write_gap_report(plain, SIDES, tmp_path / "out").read_text(encoding="utf-8")
    assert "0.900" in page


def test_a_result_without_parts_still_has_a_page(tmp_path: Path) -> None:
    bare = {"protocol": "gap_paired", "n": {"pairs": 3}, "metrics": {"probe_auc": 0.5}}
    page = write_gap_report(bare, (SIDES[0][:3], SIDES[1][:3]), tmp_path / "out")
    assert "3 pairs" in page.read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "figures").exists()
    narrow = SIDES[0][:, :1], SIDES[1][:, :1]
    assert write_gap_report(bare, narrow, tmp_path / "narrow").exists()
    with pytest.raises(DataError, match="metrics"):
        write_gap_report({**bare, "metrics": [1]}, SIDES, tmp_path / "bad")


def test_pca_is_scikit_learns_up_to_sign_and_scale() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    actual = project_pca(*SIDES)
    assert actual is not None
    rows = np.concatenate(SIDES)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = decomposition.PCA(2).fit_transform(rows)
    places = np.concatenate([actual.real, actual.generated])
    for axis in range(2):
        assert abs(np.corrcoef(places[:, axis], wanted[:, axis])[0, 1]) == pytest.approx(1)
    spread = np.ptp(places, axis=0) / np.ptp(wanted, axis=0)
    assert spread[0] == pytest.approx(spread[1])
    other = project(*SIDES)
    assert other is not None and other.separability == actual.separability
