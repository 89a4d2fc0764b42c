import os
import signal
from functools import partial
from pathlib import Path

import pytest

from gmail_align.engine import run_shards
from gmail_align.errors import ConfigError, DataError, GmailAlignError


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard}.txt"


def work(folder: Path, shard: int) -> None:
    if shard == 13:
        raise DataError("image 7 is broken")
    if shard == 666:
        os.kill(os.getpid(), signal.SIGKILL)
    with shard_path(folder, shard).open("a") as file:
        file.write(f"{os.getpid()}\n")


def is_done(folder: Path, shard: int) -> bool:
    return shard_path(folder, shard).exists()


def run(folder, shards, workers=1):
    run_shards(shards, partial(work, folder), done=partial(is_done, folder), workers=workers)
    return {shard: shard_path(folder, shard).read_text().split() for shard in shards}


def test_shards_run_here_and_in_order(tmp_path, capsys):
    order = []
    run_shards([3, 1, 2], order.append, done=lambda _: False, label="things", unit="thing")
    assert order == [3, 1, 2]
    assert capsys.readouterr().err.startswith("things 3/3 thing")


def test_finished_shards_are_not_touched(tmp_path, capsys):
    shard_path(tmp_path, 1).write_text("old")
    assert run(tmp_path, [0, 1, 2])[1] == ["old"]
    capsys.readouterr()
    run(tmp_path, [0, 1, 2])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_shard_and_finished_shards_stay(tmp_path, workers):
    with pytest.raises(DataError, match="image 7 is broken") as caught:
        run(tmp_path, [1, 13], workers)
    assert caught.value.__notes__ == ["in shard 13"]
    if workers == 1:
        assert is_done(tmp_path, 1)


def test_worker_processes_do_the_work_once(tmp_path):
    written = run(tmp_path, list(range(5)), workers=2)
    assert all(len(pids) == 1 for pids in written.values())
    assert str(os.getpid()) not in {pid for pids in written.values() for pid in pids}


def test_a_killed_worker_is_explained(tmp_path):
    with pytest.raises(GmailAlignError, match="a worker process was killed"):
        run(tmp_path, [666, 667], workers=2)


def test_no_workers_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="workers is 0"):
        run(tmp_path, [1], workers=0)
