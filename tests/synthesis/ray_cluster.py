"""Run synthesis on two local Ray nodes and kill workers: settings, captions, output, kills."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray's 15 starves on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

from ray.cluster_utils import Cluster

from gmail_align.artifacts import load
from gmail_align.engine import Engine
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.run import synthesize


def workers() -> list[psutil.Process]:
    """Return the actors' processes among our descendants, the youngest last."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ray::_RayWorker" in title:
            found.append(process)
    return found


def kill_some(out: Path, wanted: int, killed: list[int]) -> None:
    """Kill a worker each time that something new is on disk."""
    seen = 0
    while len(killed) < wanted:
        written = len(list(out.glob("shards/**/*.jsonl")))
        candidates = [process for process in workers() if process.pid not in killed]
        if written > seen and candidates:
            seen = written
            killed.append(candidates[0].pid)
            os.kill(candidates[0].pid, signal.SIGKILL)
        time.sleep(0.1)


def main() -> None:
    """Run, and print how many workers were killed and how many nodes there were."""
    settings, captions, out, kills = sys.argv[1:]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000},
    )
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    os.environ["RAY_ADDRESS"] = cluster.address
    killed: list[int] = []
    killer = threading.Thread(target=kill_some, args=(Path(out), int(kills), killed), daemon=True)
    killer.start()
    config = SynthesisConfig(**json.loads(settings))
    synthesize(config, load(Path(captions)), Path(out), Engine("ray"))
    import ray

    sys.stdout.write(json.dumps({"killed": len(killed), "nodes": len(ray.nodes())}) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
