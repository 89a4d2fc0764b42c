import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gmail_align import engine as engine_module
from gmail_align.engine import Engine, Job, Part, run_shards
from gmail_align.errors import ConfigError, DataError, GmailAlignError, MissingExtraError


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard}.txt"


def is_done(folder: Path, shard: int) -> bool:
    return shard_path(folder, shard).exists()


@dataclass
class Work:
    """Writes who did it; some shards break, kill their worker always, or kill it once."""

    folder: Path
    calls: int = 0

    def __call__(self, shard, advance) -> None:
        self.calls += 1
        if shard == 13:
            raise DataError("image 7 is broken")
        once = self.folder / f"killed-{shard}"
        if shard == 666 or (shard == 777 and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        advance(1)
        with shard_path(self.folder, shard).open("a") as file:
            file.write(f"{os.getpid()} {self.calls} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")


def run(folder, shards, workers=1, **job):
    work = Job(Work(folder), partial(is_done, folder), **job)
    run_shards(shards, work, Engine(workers=workers))
    return {shard: shard_path(folder, shard).read_text().splitlines() for shard in shards}


def test_shards_run_here_and_in_order(tmp_path, capsys):
    order = []
    job = Job(lambda shard, _: order.append(shard), lambda _: False, label="things", unit="thing")
    run_shards([3, 1, 2], job)
    assert order == [3, 1, 2]
    assert capsys.readouterr().err.startswith("things 0/3 thing")


def test_progress_counts_units_of_shards(tmp_path, capsys):
    shard_path(tmp_path, 5).write_text("old")
    job = Job(
        lambda shard, advance: [advance(1) for _ in range(shard)],
        partial(is_done, tmp_path),
        size=lambda shard: shard,
    )
    run_shards([1, 2, 5], job)
    assert capsys.readouterr().err.startswith("shards 8/8 shard")


def test_finished_shards_are_not_touched(tmp_path, capsys):
    shard_path(tmp_path, 1).write_text("old")
    assert run(tmp_path, [0, 1, 2])[1] == ["old"]
    capsys.readouterr()
    run(tmp_path, [0, 1, 2])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_every_done_shard_is_reported_once(tmp_path, workers):
    shard_path(tmp_path, 4).write_text("old")
    seen = []
    run(tmp_path, [0, 1, 2, 3, 4], workers, after=seen.append)
    assert seen[0] == 4
    assert sorted(seen) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_shard_and_finished_shards_stay(tmp_path, workers):
    with pytest.raises(DataError, match="image 7 is broken") as caught:
        run(tmp_path, [1, 13], workers)
    assert caught.value.__notes__ == ["in shard 13"]
    if workers == 1:
        assert is_done(tmp_path, 1)


def test_worker_processes_do_the_work_once_and_keep_what_they_hold(tmp_path):
    written = run(tmp_path, list(range(5)), workers=2)
    assert all(len(lines) == 1 for lines in written.values())
    calls: dict[str, list[int]] = {}
    for ((pid, call, _),) in ([line.split() for line in lines] for lines in written.values()):
        calls.setdefault(pid, []).append(int(call))
    assert str(os.getpid()) not in calls
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in calls.values())


def test_each_worker_gets_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "_visible_gpus", lambda: ["GPU-a", "GPU-b"])
    assert Engine().gpus() == 2
    work = Job(Work(tmp_path), partial(is_done, tmp_path), gpu=True)
    run_shards(list(range(6)), work, Engine())
    devices = {shard_path(tmp_path, shard).read_text().split()[2] for shard in range(6)}
    assert devices <= {"GPU-a", "GPU-b"}


def test_gpus_are_those_that_are_visible(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert engine_module._visible_gpus() == ["5", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert engine_module._visible_gpus() == ["0", "1"]


def test_a_killed_worker_is_replaced(tmp_path, capsys):
    seen = []
    written = run(tmp_path, [1, 777, 2, 3], workers=2, after=seen.append)
    assert sorted(seen) == [1, 2, 3, 777]
    assert len(written[777]) == 1
    assert "a worker process was killed, " in capsys.readouterr().err


def test_a_shard_that_always_kills_its_worker_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "RETRIES", 1)
    with pytest.raises(GmailAlignError, match="killed 2 times"):
        run(tmp_path, [666, 667], workers=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"place": "dask"}, "'dask'"),
        ({"place": "ray://"}, "ray://"),
    ],
)
def test_engines_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Engine(**values)


@pytest.mark.parametrize("place", ["ray://127.0.0.1:{}", "ray://127.0.0.1:word", "ray://h:99999"])
def test_a_cluster_that_does_not_answer_is_an_error_at_once(place):
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        where = Engine(place.format(closed.getsockname()[1]))
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at {where.place}"):
            where.gpus()


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    job = Job(Work(tmp_path), partial(is_done, tmp_path))
    with pytest.raises(MissingExtraError, match=r"pip install 'gmail-align\[cluster\]'"):
        run_shards([1, 2], job, Engine("ray"))


def test_parts_cover_every_shard_once():
    parts = [Part.parse(f"{number}/3") for number in (1, 2, 3)]
    assert str(parts[2]) == "3/3"
    owners = [[part.number for part in parts if part.owns(index)] for index in range(7)]
    assert owners == [[1], [2], [3], [1], [2], [3], [1]]


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3"])
def test_texts_that_are_no_part(text):
    with pytest.raises(ConfigError, match="--shard-of"):
        Part.parse(text)


def test_a_part_is_read_from_a_slurm_array():
    names = ("ID", "MIN", "COUNT", "STEP")
    for values, expected in (((0, 0, 4, 1), Part(1, 4)), ((7, 3, 3, 2), Part(3, 3))):
        array = {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, values, strict=True)}
        assert Part.parse("slurm", array) == expected
    with pytest.raises(ConfigError, match="--shard-of"):
        Part.parse("slurm", {})


def test_workers_end_with_the_process_that_began_them(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from orphan import sleep, never\n"
        "from gmail_align.engine import Engine, Job, run_shards\n"
        "if __name__ == '__main__': run_shards([1, 2], Job(sleep, never), Engine(workers=2))\n"
    )
    (tmp_path / "main.py").write_text(code)
    (tmp_path / "orphan.py").write_text(
        "import os, time, pathlib\n"
        "def never(shard): return False\n"
        "def sleep(shard, advance):\n"
        "    here = pathlib.Path(__file__).parent\n"
        "    (here / f'{shard}.part').write_text(str(os.getpid()))\n"
        "    os.replace(here / f'{shard}.part', here / f'{shard}.pid')\n"
        "    time.sleep(600)\n"
    )
    import subprocess

    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py"), str(tmp_path)])
    pids = [_wait_for(tmp_path / f"{shard}.pid") for shard in (1, 2)]
    process.kill()
    process.wait()
    assert all(_ends(int(pid.read_text())) for pid in pids)


def _wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return path


def _ends(pid, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


class _Actors:
    """As much of Ray as the engine uses: actors that work at once, and a count of them."""

    def __init__(self) -> None:
        self.asked = 0
        self.exceptions = SimpleNamespace(RayTaskError=KeyError, RayActorError=IndexError)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, **_: object) -> Any:
        def actor_of(kind: Any) -> Any:
            def begin(work: Any) -> Any:
                self.asked += 1
                worker = kind(work)
                run = SimpleNamespace(remote=lambda shard: (worker.run(shard), object())[1])
                return SimpleNamespace(run=run)

            return SimpleNamespace(remote=begin)

        return actor_of

    def wait(self, flying: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return flying[:num_returns], flying[num_returns:]

    def get(self, _: object) -> None:
        return None

    def kill(self, _: object) -> None:
        return None


@pytest.mark.parametrize(("workers", "asked"), [(7, 7), (None, 1), (50, 20)])
def test_ray_is_asked_for_as_many_actors_as_there_shall_be_workers(
    workers: int | None, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors that wait for a place are what an autoscaler sees; shards bound their number."""
    ray, done = _Actors(), set[int]()
    monkeypatch.setattr(engine_module, "_connect", lambda _: ray)
    monkeypatch.setattr(engine_module, "set_quiet", lambda _: None)
    job = Job(lambda shard, _: done.add(shard), done.__contains__)
    run_shards(range(20), job, Engine("ray", workers))
    assert ray.asked == asked and done == set(range(20))
