"""The event log of a training: one JSON value a line, written as things happen.

It holds what is the same in every run from one seed, so a killed run ends with the same bytes;
speed and memory are shown, not logged. Trackers read it (:mod:`gmail_align.training.trackers`).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gmail_align.artifacts import write_jsonl
from gmail_align.progress import say

EVENTS = "events.jsonl"


class EventLog:
    """``events.jsonl`` of a folder, or nothing without one."""

    def __init__(self, folder: Path | None, step: int) -> None:
        """Open the log and keep its rows up to ``step``; at step 0 it starts anew."""
        self.rows: list[dict[str, Any]] = []
        """The rows that were kept."""
        self._file: IO[str] | None = None
        if folder is None:
            return
        path = folder / EVENTS
        if step > 0 and path.exists():
            self.rows = [row for row in _whole_rows(path) if row["step"] <= step]
        write_jsonl(path, list(self.rows))
        self._file = path.open("a", encoding="utf-8")

    def add(self, event: str, row: dict[str, float]) -> None:
        """Append one row; who reads the file sees it at once."""
        if self._file is not None:
            self._file.write(json.dumps({"event": event, **row}, ensure_ascii=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Make sure that everything so far outlives a crash of the machine."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log that can be read.

    A kill cuts the last line. A crash of the machine may damage others, which a run does not need
    in order to go on: it says how many are lost.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    rows = []
    for line in filter(None, lines):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int | float):
                rows.append(row)
    lost = sum(map(bool, lines)) - len(rows)
    if lost:
        say(f"{path} is damaged: {lost} of its rows are left out, and the training goes on")
    return rows
