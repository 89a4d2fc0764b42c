"""A small part of what `make torture` does to the stages and to the files that they read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *words: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *words]
    # Buffered, as for most users: what stderr could not take must not change an exit code.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900, env=own)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_killed_stages_end_with_the_same_files() -> None:
    stages = ["tabletop write", "choose", "leaks --drop", "pair", "convert"]
    printed = run("torture.py", "--kills", "3", "--only-kills", "--stages", *stages)
    assert "0 lost, 0 different, 0 left behind, 0 badly told" in printed.splitlines()[-1]


def test_a_disturbed_stage_goes_on() -> None:
    printed = run("torture.py", "--kills", "1", "--stages", "choose")
    assert "0 lost, 0 different, 0 left behind, 0 badly told" in printed.splitlines()[-1]


@pytest.mark.slow
def test_every_stage_survives() -> None:
    run("torture.py")


def test_damaged_files_are_explained_in_a_sentence() -> None:
    files = ["train/captions/manifest.json", "coco/captions_train.json", "table.csv", "x.npy"]
    assert " 0 faults" in run("fuzz.py", "--mutations", "6", "--targets", *files).splitlines()[-1]
