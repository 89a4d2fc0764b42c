"""Trackers get what the event log says: once, in order, also while it grows."""

from __future__ import annotations

import json
import sys
import threading
import types
from pathlib import Path

import pytest

from gmail_align.errors import DataError, MissingExtraError
from gmail_align.training import trackers
from gmail_align.training.trackers import publish, read_events

ROWS = [
    {"event": "score", "step": 0.0, "score": -3.0},
    {"event": "loss", "step": 1.0, "align": 2.5, "total": 4.0},
    {"event": "loss", "step": 2.0, "align": 2.0, "total": 3.5},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_tensorboard_reads_back_what_was_sent(run: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert publish(run, "tensorboard", tmp_path / "boards", name="mine") == 3
    board = EventAccumulator(str(tmp_path / "boards" / "mine"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss/total")] == [(1, 4.0), (2, 3.5)]
    assert [(e.step, e.value) for e in board.Scalars("score/score")] == [(0, -3.0)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_get_the_same(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their packages are large, so a stand-in with the two calls that are used is enough here."""
    said: list[object] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int | None = None) -> None:
            said.append((metrics, step))

        def finish(self) -> None:
            said.append("finished")

    one = Run()
    fake = types.ModuleType(name)
    fake.init = lambda **given: said.append(given) or one
    fake.log, fake.finish = one.log, one.finish
    monkeypatch.setitem(sys.modules, name, fake)
    assert publish(run, name, tmp_path / "out", name="mine") == 3
    assert said[0]["name"] == "mine"
    assert said[-1] == "finished"
    totals = [metrics.get("loss/total") for metrics, _ in said[1:-1]]
    assert totals == [None, 4.0, 3.5]
    steps = [metrics.get("training_step", step) for metrics, step in said[1:-1]]
    assert steps == [0, 1, 2]


def test_following_ends_with_the_run_and_tells_nothing_twice(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_POLL_SECONDS", 0.01)
    path = run / "events.jsonl"
    result: list[float] = []
    listener = threading.Thread(
        target=lambda: result.extend(row["step"] for row in read_events(path, follow=True))
    )
    listener.start()
    more = [*ROWS[:2], {"event": "loss", "step": 2.0, "total": 3.5}]  # killed, and back to step 1
    path.write_text("".join(json.dumps(row) + "\n" for row in more) + '{"event": "lo')
    more += [{"event": "loss", "step": 3.0, "total": 3.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in more))
    (run / "manifest.json").write_text("{}")
    listener.join(timeout=20)
    assert not listener.is_alive()
    assert result == [0.0, 1.0, 2.0, 3.0]


def test_what_cannot_be_tracked_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"events\.jsonl"):
        publish(tmp_path, "tensorboard", tmp_path / "out", name="mine")
    rows = ['"loss"', '{"event": "loss"}', '{"event": "loss", "step": 1e999}']
    rows += ['{"event": "loss", "step": 1, "total": {}}', '{"event": "loss", "step": "x"}']
    for row in ("no json", *rows):
        (run / "events.jsonl").write_text(f"{row}\n")
        with pytest.raises(DataError, match=r"events\.jsonl"):
            publish(run, "tensorboard", tmp_path / "out", name="mine")


def test_a_tracker_that_is_not_installed_names_its_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match=r"gmail-align\[track\]"):
        publish(run, "trackio", tmp_path / "out", name="mine")
