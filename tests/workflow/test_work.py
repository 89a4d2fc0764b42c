"""The work folder: what is made once, and what a machine takes from a mirror."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gmail_align import remote
from gmail_align.artifacts import begin
from gmail_align.mirror import Mirror
from gmail_align.workflow.work import Step, Work

MADE: list[int] = []


@dataclass(frozen=True, eq=False)
class Number(Step):
    """A file that holds a number."""

    kind = "numbers"
    what = "the number {value}"
    value: int

    def _make(self, work: Work, out: Path) -> None:
        MADE.append(self.value)
        draft = begin(out, "number", {"value": self.value})
        draft.path("shards").mkdir(exist_ok=True)
        draft.path("shards/value.txt").write_text(str(self.value))
        draft.finish({"numbers": 1})


def test_what_the_mirror_has_is_not_made_again(tmp_path: Path) -> None:
    MADE.clear()
    home = Mirror.at("memory://work/run")
    first, second = (Work(tmp_path / name, mirror=home) for name in ("first", "second"))
    three, four = Number(3), Number(4)
    made = first.get(three)
    assert remote.exists(f"memory://work/run/numbers/{three.key}/manifest.json")
    again = second.get(three)
    assert MADE == [3] and again.fingerprint == made.fingerprint
    assert again.folder.is_relative_to(tmp_path / "second")
    assert again.path("shards/value.txt").read_text() == "3"
    second.get(four)
    first.get(four)
    assert MADE == [3, 4]


def test_a_manifest_goes_up_last_and_completes_what_was_cut_off(tmp_path: Path) -> None:
    home = Mirror.at("memory://work/cut")
    work = Work(tmp_path / "work", mirror=home)
    step = Number(5)
    made = Work(tmp_path / "work").get(step)  # as if the upload had been cut off at once
    copy = work.copy_of(step)
    assert copy is not None and not copy.fetch(tmp_path / "other")
    work.get(step)
    assert copy.fetch(tmp_path / "other")
    manifests = [folder / "manifest.json" for folder in (made.folder, tmp_path / "other")]
    first, second = (json.loads(path.read_text()) for path in manifests)
    assert first == second
