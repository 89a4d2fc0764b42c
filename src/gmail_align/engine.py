"""Where shards run: in this process or in worker processes of this machine.

A shard is any picklable value that names a piece of work, such as a shard's number or its path.
Work on a shard is idempotent: it ends with files that ``done`` recognises, so a run that was
stopped goes on with what is left. Nothing here knows what a shard holds, so that a cluster can
run the same function over the same shards.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from gmail_align.errors import ConfigError, GmailAlignError
from gmail_align.progress import Progress, progress, set_quiet

ShardT = TypeVar("ShardT")


def run_shards(
    shards: Sequence[ShardT],
    work: Callable[[ShardT], None],
    *,
    done: Callable[[ShardT], bool],
    workers: int = 1,
    label: str = "shards",
    unit: str = "shard",
) -> None:
    """Call ``work`` on every shard that is not done, in order.

    Args:
        shards: What to work on; picklable when ``workers`` exceeds 1.
        work: Makes one shard's files; a function of a module when ``workers`` exceeds 1.
        done: Whether a shard's files exist already.
        workers: Processes; 1 works in this process.
        label: Name of the job in its progress.
        unit: Name of one shard in its progress.

    Raises:
        ConfigError: ``workers`` is not positive.
        GmailAlignError: a worker process was killed.
        Exception: what ``work`` raised, with a note that names the shard; no further one starts.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}, but at least 1 is needed")
    pending = [shard for shard in shards if not done(shard)]
    if not pending:
        return
    with progress(label, len(shards), unit, done=len(shards) - len(pending)) as bar:
        if workers == 1:
            _run_here(pending, work, bar, unit)
        else:
            _run_in_processes(pending, work, min(workers, len(pending)), bar, unit)


def _run_here(
    pending: Sequence[ShardT], work: Callable[[ShardT], None], bar: Progress, unit: str
) -> None:
    for shard in pending:
        try:
            work(shard)
        except Exception as error:
            error.add_note(f"in {unit} {shard}")
            raise
        bar.advance()


def _run_in_processes(
    pending: Sequence[ShardT],
    work: Callable[[ShardT], None],
    workers: int,
    bar: Progress,
    unit: str,
) -> None:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=set_quiet, initargs=(True,))
    try:
        names = {pool.submit(work, shard): shard for shard in pending}
        for future in as_completed(names):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise GmailAlignError(
                    f"a worker process was killed near {unit} {names[future]}, perhaps for want of "
                    "memory: run the same command again, with fewer workers"
                ) from error
            if error is not None:
                error.add_note(f"in {unit} {names[future]}")
                raise error
            bar.advance()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
