"""Where shards run: in this process, in processes of this machine, or on a Ray cluster.

A shard is any picklable value that names a piece of work, such as a shard's number or its path.
Work on a shard is idempotent: it ends with files that ``done`` recognises, so a run that was
stopped goes on with what is left, and a worker that was lost is replaced. Nothing here knows what
a shard holds, and every place runs the same function over the same shards.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gmail_align.errors import ConfigError, GmailAlignError, Terminated
from gmail_align.extras import require
from gmail_align.progress import Progress, progress, say, set_quiet

ShardT = TypeVar("ShardT")
Advance = Callable[[int], None]
"""Count finished units of the shard in work."""

RETRIES = 10
"""How often lost workers are replaced before the run gives up."""
_RAY_PORT = 10001


@dataclass(frozen=True)
class Engine:
    """Where shards run, and in how many processes."""

    place: str = "local"
    """``local``, ``ray`` (the cluster that this machine belongs to, else a local one) or
    ``ray://host:port`` (a cluster elsewhere)."""
    workers: int | None = None
    """Processes; None is one for each visible GPU, and without GPUs one, or on Ray one a CPU."""

    def __post_init__(self) -> None:
        """Refuse an unknown place and a number of workers below 1.

        Raises:
            ConfigError: see above.
        """
        if self.place not in ("local", "ray") and not self.place.removeprefix("ray://").strip("/"):
            raise ConfigError("ray:// needs a host: write ray://HOST or ray://HOST:PORT")
        if self.place not in ("local", "ray") and not self.place.startswith("ray://"):
            raise ConfigError(
                f"{self.place!r} is not an engine: use local, ray or ray://HOST of a cluster"
            )
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}, but at least 1 is needed")

    @property
    def on_ray(self) -> bool:
        """Whether shards run on a Ray cluster."""
        return self.place != "local"

    def gpus(self) -> int:
        """Count the GPUs that workers can have: this machine's, or the cluster's.

        Raises:
            MissingExtraError: Ray is needed and not installed.
            ConfigError: no cluster answers.
        """
        if self.on_ray:
            return int(_connect(self.place).cluster_resources().get("GPU", 0))
        return len(_visible_gpus())


@dataclass(frozen=True)
class Part:
    """One of several runs, such as the tasks of a SLURM array, that share the shards of a job."""

    number: int
    """From 1 to ``of``."""
    of: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] | None = None) -> Part:
        """Read ``3/8``, or ``slurm`` for the task of the array that this process is.

        Raises:
            ConfigError: the text has another form, or this process is not a task of a SLURM array.
        """
        if text == "slurm":
            return cls._of_slurm(os.environ if environment is None else environment)
        number, slash, of = text.partition("/")
        if not slash or not number.isdecimal() or not of.isdecimal():
            raise ConfigError(
                f"--shard-of {text!r} is neither slurm nor of the form i/n, such as 3/8"
            )
        if not 1 <= int(number) <= int(of):
            raise ConfigError(
                f"--shard-of {text}: parts count from 1, so that the last is {of}/{of}"
            )
        return cls(int(number), int(of))

    @classmethod
    def _of_slurm(cls, environment: Mapping[str, str]) -> Part:
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        try:
            task, first, count = (int(environment[name]) for name in names)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                "--shard-of slurm works in the tasks of a job array (sbatch --array=1-8), and this "
                "process is not one: name the part, such as 3/8"
            ) from error
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        return cls((task - first) // step + 1, count)

    def owns(self, index: int) -> bool:
        """Tell whether shard number ``index`` is this part's to make."""
        return index % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def _one(shard: object) -> int:
    return 1


def _nothing(shard: object) -> None:
    return None


@dataclass(frozen=True)
class Job(Generic[ShardT]):
    """The work on shards, and how to tell that it is done."""

    work: Callable[[ShardT, Advance], None]
    """Makes one shard's files. It must be picklable. Each worker process receives it once, so what
    it keeps on itself, such as a loaded model, lasts as long as the worker."""
    done: Callable[[ShardT], bool]
    """Whether a shard's files exist already."""
    after: Callable[[ShardT], None] = _nothing
    """Called in the main process with every finished shard, beginning with those that were finished
    before; an exception from it stops the run."""
    size: Callable[[ShardT], int] = _one
    """Units in a shard, for the progress."""
    label: str = "shards"
    """Name of the job in its progress."""
    unit: str = "shard"
    """Name of one unit there."""
    gpu: bool = False
    """Whether each worker needs a GPU of its own."""


def run_shards(shards: Sequence[ShardT], job: Job[ShardT], engine: Engine | None = None) -> None:
    """Do the work on every shard that is not done: in order in this process, else in any order.

    Args:
        shards: What to work on; picklable when work leaves this process.
        job: The work.
        engine: Where; None is this process.

    Raises:
        GmailAlignError: worker processes were killed again and again.
        MissingExtraError: Ray is needed and not installed.
        ConfigError: no Ray cluster answers.
        Exception: what the work raised, with a note that names the shard; no further one starts.
    """
    engine = engine or Engine(workers=1)
    pending = []
    for shard in shards:
        if job.done(shard):
            job.after(shard)
        else:
            pending.append(shard)
    if not pending:
        return
    total, left = (sum(map(job.size, group)) for group in (shards, pending))
    with progress(job.label, total, job.unit, done=total - left) as bar:
        workers = _workers(engine, job.gpu)
        if engine.on_ray:
            with redirect_stdout(sys.stderr):  # Ray reports lost workers on stdout
                _run_on_ray(pending, job, engine.place, workers, bar)
        elif min(workers, len(pending)) == 1:
            _run_here(pending, job, bar)
        else:
            _run_in_processes(pending, job, min(workers, len(pending)), bar)


def _workers(engine: Engine, gpu: bool) -> int:
    if engine.workers is not None:
        return engine.workers
    if gpu:
        return max(1, engine.gpus())
    return int(_connect(engine.place).cluster_resources().get("CPU", 1)) if engine.on_ray else 1


def _run_here(pending: Sequence[ShardT], job: Job[ShardT], bar: Progress) -> None:
    for shard in pending:
        try:
            job.work(shard, bar.advance)
        except Exception as error:
            error.add_note(f"in shard {shard}")
            raise
        job.after(shard)


def _run_in_processes(
    pending: Sequence[ShardT], job: Job[ShardT], workers: int, bar: Progress
) -> None:
    """Run a pool; when a process of it is killed, begin a new one with what is left."""
    left = list(pending)
    lost = 0

    def finished(shard: ShardT) -> None:
        left.remove(shard)
        bar.advance(job.size(shard))
        job.after(shard)

    while left:
        try:
            _run_pool(tuple(left), job, workers, finished)
        except BrokenProcessPool as error:
            lost += 1
            for shard in [shard for shard in left if job.done(shard)]:
                finished(shard)
            if lost > RETRIES:
                raise GmailAlignError(
                    f"a worker process was killed {lost} times, last with {len(left)} shards left, "
                    "perhaps because memory ran out: run the same command again, with fewer workers"
                ) from error
            say(f"{job.label}: a worker process was killed, {len(left)} shards are left")


def _run_pool(
    pending: Sequence[ShardT],
    job: Job[ShardT],
    workers: int,
    finished: Callable[[ShardT], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    gpus = context.SimpleQueue()
    names = _visible_gpus() if job.gpu else []
    for worker in range(workers):
        gpus.put(names[worker % len(names)] if names else None)
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin_worker, initargs=(job.work, gpus, threads)
    )
    try:
        futures = {pool.submit(_work_in_worker, shard): shard for shard in pending}
        for future in as_completed(futures):
            error = future.exception()
            if error is None:
                finished(futures[future])
                continue
            if not isinstance(error, BrokenProcessPool):
                error.add_note(f"in shard {futures[future]}")
            raise error
    except Terminated:
        for process in multiprocessing.active_children():
            process.kill()  # a shard may take minutes, and it is made again anyway
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any, Advance], None] | None = None  # of the worker process that this is


def _begin_worker(work: Callable[[Any, Advance], None], gpus: Any, threads: int) -> None:
    """Prepare a worker process that makes shards: a GPU or its share of the cores."""
    global _work
    gpu = gpus.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    begin_helper(threads)
    _work = work


def begin_helper(threads: int) -> None:
    """Let this process work quietly, with so many threads, and end when its parent ends."""
    if "OMP_NUM_THREADS" not in os.environ:  # more threads than cores would wait for each other
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    set_quiet(True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_in_worker(shard: Any) -> None:
    assert _work is not None
    _work(shard, _nothing)


def _visible_gpus() -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES can single out each GPU."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(index) for index in range(count)])[:count]


class _RayWorker:
    """A worker process on a Ray cluster; it becomes an actor when it is used."""

    def __init__(self, work: Callable[[Any, Advance], None]) -> None:
        set_quiet(True)
        self._work = work

    def run(self, shard: Any) -> None:
        self._work(shard, _nothing)


def _connect(place: str) -> Any:
    """Return the ``ray`` module, connected; the connection lasts as long as this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray = require("ray", "cluster")
    if ray.is_initialized():
        return ray
    try:
        if place == "ray":
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        else:
            logging.getLogger("ray.client_builder").setLevel(logging.WARNING)
            ray.init(_client_address(place))
    except Exception as error:  # a Ray that does not start in time raises no class of its own
        raise ConfigError(
            f"no Ray cluster answers at {place} ({str(error).partition(chr(10))[0][:200]}): start "
            "one with ray start --head --ray-client-server-port 10001, or use --engine local"
        ) from error
    return ray


def _client_address(place: str) -> str:
    """Add the usual port to ``ray://HOST``, and see at once whether anything listens there."""
    host, _, port = place.removeprefix("ray://").rstrip("/").partition(":")
    number = int(port or _RAY_PORT)
    with socket.create_connection((host, number), timeout=10):
        return f"ray://{host}:{number}"


def _run_on_ray(
    pending: Sequence[ShardT], job: Job[ShardT], place: str, workers: int, bar: Progress
) -> None:
    """Keep one shard in flight on every actor; Ray restarts a lost one and repeats its shard."""
    ray = _connect(place)
    actor = ray.remote(
        num_cpus=1, num_gpus=int(job.gpu), max_restarts=RETRIES, max_task_retries=RETRIES
    )(_RayWorker)
    waiting = deque(pending)
    idle = [actor.remote(job.work) for _ in range(min(workers, len(pending)))]
    flying: dict[Any, tuple[Any, ShardT]] = {}
    try:
        while waiting or flying:
            while waiting and idle:
                handle, shard = idle.pop(), waiting.popleft()
                flying[handle.run.remote(shard)] = (handle, shard)
            for handle in idle:  # an actor that still waits for resources can have its place
                ray.kill(handle)
            idle.clear()
            (finished, *_), _ = ray.wait(list(flying), num_returns=1)
            handle, shard = flying.pop(finished)
            _result(ray, finished, shard)
            idle.append(handle)
            bar.advance(job.size(shard))
            job.after(shard)
    finally:
        for handle in [*idle, *(handle for handle, _ in flying.values())]:
            ray.kill(handle)


def _result(ray: Any, finished: Any, shard: object) -> None:
    """Raise what the work on a shard raised, without Ray's wrapping."""
    try:
        ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        cause.add_note(f"in shard {shard}")
        raise cause from None
    except ray.exceptions.RayActorError as error:
        raise GmailAlignError(
            f"Ray lost the worker of shard {shard} more than {RETRIES} times, perhaps because "
            "memory ran out: run the same command again, with fewer workers"
        ) from error
