"""Claims compare what two rows learnt, in the result that the metric means."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gmail_align.artifacts import write_json
from gmail_align.evaluation.answers import evaluate_answers
from gmail_align.workflow.rows import JudgedEncoder, RowSteps
from gmail_align.workflow.steps.learners import Probe
from gmail_align.workflow.summary import _differences

KEY = {str(n): "A" for n in range(10)}


class Work:
    """A work folder in which a step is the name of its result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: str) -> Path:
        """Return the result of a step."""
        return self.folder / step

    def write(self, step: str, right: int) -> str:
        """Write a result with so many right answers of ten."""
        said, key = self.folder / f"{step}-said.json", self.folder / "key.json"
        write_json(said, {name: "A" if int(name) < right else "B" for name in KEY})
        write_json(key, KEY)
        evaluate_answers(said, key, self.path(step))
        return step


def row(zeroshot: str, **own: Any) -> RowSteps:
    reader = JudgedEncoder("", cast("Any", None), None, {}, {"own": cast("Any", zeroshot)})
    return RowSteps(
        cast("Any", None), 0, None, own.get("output"), None, reader, own.get("answers", {})
    )


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_accuracy_is_that_of_the_answers_where_the_encoder_has_one_too(work: Work) -> None:
    same = work.write("zeroshot", 10)
    better, worse = (
        [row(same, answers={"asked": work.write(name, right)})]
        for name, right in (("better", 8), ("worse", 3))
    )
    difference = _differences(better, worse, "accuracy", cast("Any", work))
    assert difference["accuracy"]["value"] == pytest.approx(0.5)


def test_rows_are_compared_in_the_same_result(work: Work) -> None:
    for name, right in (("probe", 0), ("low", 2), ("high", 9)):
        work.write(name, right)
    probe = Probe.__new__(Probe)
    own = SimpleNamespace(path=lambda step: work.path("probe" if step is probe else step))
    better, worse = [row("high")], [row("low", output=probe)]
    difference = _differences(better, worse, "accuracy", cast("Any", own))
    assert difference["accuracy"]["value"] == pytest.approx(0.7)
