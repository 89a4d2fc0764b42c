"""Run synthesis on two local Ray nodes and kill workers: settings, captions, output, kills, place.

The place is ``ray``, or ``client`` for ``ray://HOST`` of a head node that serves clients.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray's 15 starves on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

from ray.cluster_utils import Cluster

import gmail_align.synthesis.run as stage
from gmail_align.artifacts import load
from gmail_align.engine import Engine
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.shards import ShardMaker

MEMORY = 80_000_000


class Slow(ShardMaker):
    """Takes so long for a batch that it is hit while it has work left."""

    def _keep(self, *arguments: Any) -> Any:
        time.sleep(0.3)
        return super()._keep(*arguments)


def workers() -> list[psutil.Process]:
    """Return the actors' processes among our descendants."""
    result = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ray::_RayWorker" in title:
            result.append(process)
    return result


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
        time.sleep(0.05)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Run, and print how many workers were killed and how many nodes there were."""
    settings, captions, out, kills, place = sys.argv[1:]
    head: dict[str, Any] = {"num_cpus": 1, "object_store_memory": MEMORY}
    if place == "client":
        port = free_port()
        head["ray_client_server_port"], place = port, f"ray://127.0.0.1:{port}"
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    if place == "ray":
        os.environ["RAY_ADDRESS"] = cluster.address
    killed: list[int] = []
    killer = threading.Thread(target=kill_some, args=(Path(out), int(kills), killed), daemon=True)
    killer.start()
    stage.ShardMaker = Slow  # type: ignore[misc]
    config = SynthesisConfig(**json.loads(settings))
    stage.synthesize(config, load(Path(captions)), Path(out), Engine(place))
    import ray

    sys.stdout.write(json.dumps({"killed": len(killed), "nodes": len(ray.nodes())}) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
