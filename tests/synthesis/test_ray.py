"""Runs on a local Ray cluster of two nodes whose workers are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gmail_align.artifacts import Artifact, load
from gmail_align.data.images import ImageStore
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.run import synthesize

SCRIPT = Path(__file__).with_name("ray_cluster.py")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["ray", "client"])
def test_workers_that_are_killed_change_nothing(
    model: Path, captions: Artifact, tmp_path: Path, place: str
) -> None:
    pytest.importorskip("ray")
    settings = {
        "model": str(model),
        "steps": 2,
        "images_per_caption": 4,
        "batch_size": 1,
        "shard_size": 1,
        "device": "cpu",
    }
    whole = synthesize(SynthesisConfig(**settings), captions, tmp_path / "whole")
    values = [json.dumps(settings), captions.folder, tmp_path / "ray", "3", place]
    ran = subprocess.run(
        [sys.executable, SCRIPT, *values], capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {"killed": 3, "nodes": 2}
    made = load(tmp_path / "ray")
    expected = [f"{100 + caption}-{k}" for caption in range(7) for k in range(4)]
    assert ImageStore(made).ids == expected
    assert made.manifest["files"] == whole.manifest["files"]
    assert made.fingerprint == whole.fingerprint
