"""Loss curves of every preset, step by step: a change that moves one has to say so.

Run with ``GMAIL_ALIGN_WRITE_GOLDEN=1`` to write them anew, and read the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gmail_align.alignment.config import ALIGN_PRESETS, align_preset
from gmail_align.alignment.run import align
from gmail_align.artifacts import read_jsonl
from gmail_align.training.config import OptimConfig

GOLDEN = Path(__file__).with_name("golden_curves.json")
OPTIM = OptimConfig(steps=20, lr=1e-3, restart_every=8, evaluate_every=10, checkpoint_every=100)
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in ALIGN_PRESETS},
    "learned temperature, summed positives": {"learn_temperature": True, "positives": "sum"},
    "both directions": {"direction": "both"},
    "mixed data": {"data": "mixed"},
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_curve_of_every_preset_is_as_it_was(
    name: str, clip_folder: Path, world: Any, tmp_path: Path, cache: Path
) -> None:
    changes = dict(VARIANTS[name])
    config = align_preset(
        changes.pop("preset", "gmail"), batch_size=6, holdout=0.25, optim=OPTIM, **changes
    )
    sources = (world.pairs, world.real, world.generated)
    made = align(config, *sources, clip_folder, tmp_path / "encoder", seed=3, cache=cache)
    rows = list(read_jsonl(made.path("events.jsonl")))
    found = {
        "total": [row["total"] for row in rows if row["event"] == "loss"],
        "score": [row["score"] for row in rows if row["event"] == "score"],
    }
    assert len(found["total"]) == 20
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GMAIL_ALIGN_WRITE_GOLDEN"):
        golden[name] = {key: [round(v, 6) for v in values] for key, values in found.items()}
        GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
    for key, values in found.items():
        assert values == pytest.approx(golden[name][key], rel=2e-4, abs=2e-4)


def test_every_golden_curve_is_of_a_preset() -> None:
    assert set(json.loads(GOLDEN.read_text())) == set(VARIANTS)


def test_switches_change_the_curve() -> None:
    golden = json.loads(GOLDEN.read_text())
    firsts = [tuple(curve["total"]) for curve in golden.values()]
    assert len(set(firsts)) == len(firsts)
