"""Experiment trackers, fed from the event log: training itself knows none of them.

So a tracker can be chosen after the fact, be fed again, or follow a run that is still going on. A
tracker that fails never stops a training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from gmail_align.artifacts import MANIFEST
from gmail_align.errors import DataError, damage_explained
from gmail_align.extras import require
from gmail_align.training.events import EVENTS

Tracker = Literal["tensorboard", "wandb", "trackio"]
Put = Callable[[dict[str, float], int], None]
"""Metrics by name and their step."""
_POLL_SECONDS = 1.0


def publish(folder: Path, tracker: Tracker, out: Path, *, name: str, follow: bool = False) -> int:
    """Send the events of a training to a tracker and return how many there were.

    Args:
        folder: A folder with an ``events.jsonl``: an encoder, a captioner, finished or not.
        tracker: Where they go.
        out: Folder of TensorBoard's files, and of what others keep locally.
        name: Name of the run there.
        follow: Whether to wait for more until the run is finished.

    Raises:
        DataError: the event log is missing, or a line of it is damaged.
        MissingExtraError: the tracker's package is not installed.
    """
    path = folder / EVENTS
    if not path.exists() and not follow:
        raise DataError(f"{folder} does not have {EVENTS}: name the folder of a training")
    openers = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
    count = 0
    with openers[tracker](out, name) as put:
        for row in read_events(path, follow=follow):
            kind, step = row.pop("event"), int(row.pop("step"))
            put({f"{kind}/{key}": value for key, value in row.items()}, step)
            count += 1
    return count


def read_events(path: Path, *, follow: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of an event log, and with ``follow`` those that are still to come.

    A run that was killed and started again rewrites its log; steps that were told already are not
    told twice.

    Raises:
        DataError: a line is damaged.
    """
    told: set[tuple[str, float]] = set()
    while True:
        finished = (path.parent / MANIFEST).exists() or not follow
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.split("\n")[:-1]:
            row = _row(line, path)
            if (row["event"], row["step"]) not in told:
                told.add((row["event"], row["step"]))
                yield row
        if finished:
            return
        time.sleep(_POLL_SECONDS)


def _row(line: str, path: Path) -> dict[str, Any]:
    with damage_explained(f"a line of {path}", DataError, "run the training again"):
        row: dict[str, Any] = json.loads(line)
        event = str(row.pop("event"))
        figures = {key: float(value) for key, value in row.items()}
        return {"event": event, **figures, "step": float(int(figures["step"]))}


@contextmanager
def _tensorboard(out: Path, name: str) -> Iterator[Put]:
    require("tensorboard", "track")
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(out / name))

    def put(metrics: dict[str, float], step: int) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    try:
        yield put
    finally:
        writer.close()


@contextmanager
def _wandb(out: Path, name: str) -> Iterator[Put]:
    out.mkdir(parents=True, exist_ok=True)
    run: Any = require("wandb", "track").init(project="gmail-align", name=name, dir=str(out))
    try:
        yield lambda metrics, step: run.log({**metrics, "training_step": step})
    finally:
        run.finish()


@contextmanager
def _trackio(out: Path, name: str) -> Iterator[Put]:
    trackio: Any = require("trackio", "track")
    trackio.init(project="gmail-align", name=name)
    try:
        yield lambda metrics, step: trackio.log(metrics, step=step)
    finally:
        trackio.finish()
