"""Kill one run of a recipe at random moments, or workers of it on Ray, and compare what comes out.

    python benchmarks/kill_runs.py --kills 20
    python benchmarks/kill_runs.py --kills 3 --engine ray --recipe benchmarks/small.toml

One run, on the local engine, is left alone. Another is killed with SIGKILL, all its processes at
once, whenever it has written so many files; the numbers are drawn from the whole run. It is started
again each time. On Ray, worker processes alone are killed, and the run goes on by itself. Both runs
have the same path. Then every file of both is compared and what differs is printed. Measured times
are left out: of manifests and results, of the inputs in ``import.json``, and of the hash of the
result in ``recipe.json``. The report's table of stages and its page show times: they alone may
differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from torture import digest

IGNORED = (".turns", "cache")
"""Folders that hold no results: turns that steps wait for, and what can be made again."""
LOG = "stage.log"
"""What a stage said, with times."""


def command(work: Path, recipe: str, engine: str) -> list[str]:
    """Return the command of a run."""
    start = [sys.executable, "-m", "gmail_align", "run", recipe, "--quiet"]
    return [*start, "--work", str(work), "--engine", engine]


def begin(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own."""
    return subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def written(work: Path) -> int:
    """Return how many files a run has written."""
    return sum(len(names) for _, _, names in os.walk(work))


def results(work: Path) -> dict[str, str]:
    """Return a hash of every file that is a result."""
    paths = [path for path in sorted(work.rglob("*")) if path.is_file() and path.name != LOG]
    names = {path: path.relative_to(work) for path in paths}
    return {
        str(name): timeless(path) for path, name in names.items() if name.parts[0] not in IGNORED
    }


def timeless(path: Path) -> str:
    """Return a hash of a file that does not see times, nor the hash of a file that holds them."""
    left_out = {"import.json": "inputs", "recipe.json": "result"}.get(path.name)
    if left_out is None:
        return digest(path)
    row = json.loads(path.read_text(encoding="utf-8"))
    return json.dumps({**row, left_out: left_out in row}, sort_keys=True)


def kill_run(words: list[str], work: Path, moments: list[int]) -> int:
    """Kill a run whenever it has written so many files, and start it again; count the kills."""
    kills = 0
    for moment in moments:
        process = begin(words)
        while process.poll() is None and written(work) < moment:
            time.sleep(0.01)
        time.sleep(random.random() * 0.2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(errors.decode())
    return kills


def kill_workers(words: list[str], work: Path, moments: list[int]) -> int:
    """Kill a Ray worker of one run whenever the run has written so many files."""
    process, kills, seen = begin(words), 0, set[int]()
    while process.poll() is None and kills < len(moments):
        time.sleep(0.05)
        if written(work) < moments[kills]:
            continue
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                title = " ".join(child.cmdline())
                if child.pid not in seen and "ray::_RayWorker" in title:
                    seen.add(child.pid)
                    child.kill()
                    kills += 1
                    break
            except psutil.Error:
                continue
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors.decode())
    return kills


def main() -> int:
    """Kill, compare, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--engine", default="local", choices=("local", "ray"))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    random.seed(chosen.seed)
    with tempfile.TemporaryDirectory() as home:
        work, start = Path(home) / "work", time.monotonic()
        subprocess.run(command(work, chosen.recipe, "local"), check=True)
        expected, seconds = results(work), time.monotonic() - start
        count = written(work)
        shutil.rmtree(work)
        print(f"undisturbed: {count} files, {len(expected)} of them results, {seconds:.0f} s")
        moments = sorted(random.sample(range(1, count), chosen.kills))
        words = command(work, chosen.recipe, chosen.engine)
        kill = kill_workers if chosen.engine == "ray" else kill_run
        kills = kill(words, work, moments)
        subprocess.run(words, check=True)
        here = results(work)
    lost, more = expected.keys() - here.keys(), here.keys() - expected.keys()
    other = [name for name in expected.keys() & here.keys() if expected[name] != here[name]]
    print(f"{kills} kills at {moments} files")
    print(f"lost {len(lost)}, left behind {len(more)}, different {len(other)} of {len(expected)}")
    for name in sorted([*lost, *more, *other]):
        print(f"  {name}")
    timed = ("report/index.html", "report/tables/stages.")
    unlike = [name for name in other if not any(part in name for part in timed)]
    return int(bool(lost or more or unlike) or kills < chosen.kills)


if __name__ == "__main__":
    sys.exit(main())
