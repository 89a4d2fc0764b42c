"""A process that is killed outright at any step, again and again, ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.run import Sources, align
from gmail_align.progress import LOG
from gmail_align.training.config import OptimConfig

KILLS = int(os.environ.get("GMAIL_ALIGN_KILLS", "3"))
"""How often; 20 is the long version."""
STEPS = max(24, 8 * KILLS)
OPTIM = OptimConfig(steps=STEPS, lr=2e-3, checkpoint_every=5, evaluate_every=4)
CONFIG = AlignConfig(batch_size=6, holdout=0.25, optim=OPTIM, learn_temperature=True, apply="best")


def _fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a child process and return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: none is held here
        child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def _steps(folder: Path) -> int:
    """Count the steps that the event log tells of."""
    try:
        return (folder / "events.jsonl").read_bytes().count(b'"loss"')
    except FileNotFoundError:
        return 0


def _kill_at(child: int, folder: Path, step: int) -> int:
    """Kill a process when it has taken ``step`` steps; returns what it ended with."""
    for _ in range(60_000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if _steps(folder) >= step:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the run stands still")


def _files(folder: Path) -> dict[str, bytes]:
    result = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in result
        if path.name not in ("manifest.json", LOG)
    }


def test_killed_at_random_steps_it_ends_with_the_same_bytes(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    sources = (world.pairs, world.real, world.generated)
    whole = align(CONFIG, Sources(*sources), clip_folder, tmp_path / "whole", seed=3)
    killed, rng, died = tmp_path / "killed", random.Random(0), 0
    for left in range(KILLS, 0, -1):
        start = _steps(killed) // 5 * 5
        child = _fork(lambda: align(CONFIG, Sources(*sources), clip_folder, killed, seed=3))
        step = rng.randint(start, start + (STEPS - 1 - start) // left)
        status = _kill_at(child, killed, step)
        died += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died == KILLS
    again = align(CONFIG, Sources(*sources), clip_folder, killed, seed=3)
    assert _files(again.folder) == _files(whole.folder)
    assert again.fingerprint == whole.fingerprint
