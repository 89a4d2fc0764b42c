"""Loss curves of every preset, step by step: a change that moves one has to say so.

Run with ``GMAIL_ALIGN_WRITE_GOLDEN=1`` to write them anew, and read the difference.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.run import Sources, align
from gmail_align.artifacts import Artifact, begin, read_jsonl, write_jsonl
from gmail_align.data.pairs import PAIRS, read_pairs
from gmail_align.training.config import OptimConfig

GOLDEN = Path(__file__).with_name("golden_curves.json")
OPTIM = OptimConfig(steps=20, lr=1e-3, restart_every=8, evaluate_every=10, checkpoint_every=100)
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in AlignConfig.presets},
    "learned temperature, summed positives": {"learn_temperature": True, "positives": "sum"},
    "both directions": {"direction": "both"},
    "mixed data": {"data": "mixed"},
    "SigLIP's sigmoid": {"base": "siglip_folder"},
    "SigLIP by softmax": {"base": "siglip_folder", "text_loss": "softmax"},
    "both towers": {"lora": {"towers": "both"}},
    "the text tower alone": {"lora": {"towers": "text"}, "weights": {"align": 0.0}},
    "SigLIP, both towers": {"base": "siglip_folder", "lora": {"towers": "both"}},
    "long and short captions": {"pairs": "long", "text_loss": "long_short"},
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="session")
def long_pairs(world: Any, cache: Path) -> Artifact:
    """The world's pairs with captions of two sentences, the first of which names the colour."""
    draft = begin(cache / "long", "pairs", {}, {"pairs": world.pairs})
    rows = [
        asdict(pair) | {"text": pair.text.replace(" image of", ". image of")}
        for pair in read_pairs(world.pairs)
    ]
    write_jsonl(draft.path(PAIRS), rows)
    return draft.finish({"pairs": len(rows)})


@pytest.mark.parametrize("name", VARIANTS)
def test_the_curve_of_every_preset_is_as_it_was(
    name: str, world: Any, tmp_path: Path, cache: Path, request: pytest.FixtureRequest
) -> None:
    changes = dict(VARIANTS[name])
    base = request.getfixturevalue(changes.pop("base", "clip_folder"))
    long = changes.pop("pairs", "") == "long"
    pairs = request.getfixturevalue("long_pairs") if long else world.pairs
    preset = changes.pop("preset", "gmail")
    small = {"batch_size": 6, "holdout": 0.25, "optim": OPTIM, "select": "loss"}
    config = AlignConfig.from_preset(preset, {**small, **changes})
    sources = (pairs, world.real, world.generated)
    made = align(config, Sources(*sources), base, tmp_path / "encoder", seed=3, cache=cache)
    rows = list(read_jsonl(made.path("events.jsonl")))
    result = {
        "total": [row["total"] for row in rows if row["event"] == "loss"],
        "score": [row["score"] for row in rows if row["event"] == "score"],
    }
    assert len(result["total"]) == 20
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GMAIL_ALIGN_WRITE_GOLDEN"):
        golden[name] = {key: [round(v, 6) for v in values] for key, values in result.items()}
        GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
    for key, values in result.items():
        assert values == pytest.approx(golden[name][key], rel=2e-4, abs=2e-4)
