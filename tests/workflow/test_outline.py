"""The numbering of finished steps."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gmail_align import progress
from gmail_align.workflow.outline import Outline


def test_steps_are_numbered_by_what_lies_on_disk(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    outline = Outline(dict(zip(files, (1.0, 1.0, 2.0), strict=True)), time.time() - 60)
    assert outline.line("features", 3) == "[0/3] features: 0:03"
    files[0].touch()
    assert outline.line("features", 3) == "[1/3] features: 0:03; about 3:00 left in all"
    files[1].touch()
    files[2].touch()
    assert outline.line("scores", 65) == "[3/3] scores: 1:05"


def test_a_job_inside_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.brief(), progress.progress("pixels", 2) as bar:
        bar.advance(2)
        progress.say("one word")
    assert capsys.readouterr().err == "one word\n"
    with progress.progress("pixels", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr().err.startswith("pixels 2/2")
