"""Locks on files that end with the process that holds them: temporaries and leases.

A lock tells whether the writer of a file is alive, on this machine or on another one. On a file
system without locks nothing guards against a second writer.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gmail_align.errors import ArtifactError
from gmail_align.progress import close_log

TEMPORARY = ".tmp"
"""Ending of files and folders that are not finished; their names begin with a dot."""
LEASE = ".lease"
"""Beginning of the names of lock files in a folder that is being written."""
_PATIENCE = 5.0
"""Seconds that one part of a job waits while another one begins."""
_turns = threading.local()
_kept = threading.local()


def open_temporary(path: Path) -> tuple[int, Path]:
    """Create and lock a temporary for ``path``; replace the one that a killed process left.

    Two processes that write the same file get a temporary each.

    Returns:
        The open file and its path.
    """
    number = 0
    while True:
        temporary = path.with_name(f".{path.name}{f'.{number}' if number else ''}{TEMPORARY}")
        try:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            number += not remove_abandoned(temporary)
            continue
        if lock(handle, temporary):
            return handle, temporary
        os.close(handle)  # another process took it for abandoned before it was locked


def remove_abandoned(temporary: Path) -> bool:
    """Remove a temporary file unless a live process writes it; True when it is gone."""
    try:
        handle = os.open(temporary, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        if lock(handle, temporary):
            temporary.unlink()
            return True
        return not temporary.exists()
    finally:
        os.close(handle)


def is_mark(name: str) -> bool:
    """Tell whether a file of that name is a lease or a temporary."""
    return name.startswith(LEASE) or (name.startswith(".") and name.endswith(TEMPORARY))


def sweep(folder: Path) -> None:
    """Remove the temporaries that killed processes left in a folder; those of live ones stay."""
    for path in list(folder.rglob(f".*{TEMPORARY}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove_abandoned(path)


def lock(handle: int, path: Path, mode: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> bool:
    """Lock an open file.

    Returns:
        False when another process holds the lock, or has removed the file from ``path`` meanwhile.
    """
    try:
        fcntl.flock(handle, mode)
    except BlockingIOError:
        return False
    except OSError:  # the file system does not have locks
        pass
    return _is_at(handle, path)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def take_leases(folder: Path, part: str = "") -> tuple[list[int], bool]:
    """Lock a folder for one writer, or for one part of a job beside other parts.

    Args:
        folder: The folder.
        part: Name of the part; empty for a writer that works alone.

    Returns:
        The open lock files, the folder's last, and whether nobody else is at work there. A part
        that is alone has to :func:`share` the folder when it has begun.

    Raises:
        ArtifactError: another process is writing the folder, or the same part of it.
    """
    own = [_take(folder / f"{LEASE}-{part}", fcntl.LOCK_EX)] if part else []
    try:
        return [*own, _take(folder / LEASE, fcntl.LOCK_EX)], True
    except ArtifactError:
        if not own:
            raise
    try:
        return [*own, _take(folder / LEASE, fcntl.LOCK_SH, _PATIENCE)], False
    except ArtifactError:
        close(own)
        raise


def share(lease: int, folder: Path) -> None:
    """Let other parts of a job work beside this one.

    Raises:
        ArtifactError: another process took the folder.
    """
    if not lock(lease, folder / LEASE, fcntl.LOCK_SH | fcntl.LOCK_NB):
        raise ArtifactError(f"{folder} is being written by another process: wait for it")


def close(leases: list[int]) -> None:
    """End locks."""
    for lease in leases:
        os.close(lease)


def keep_for(owner: object, leases: list[int], log: int) -> Callable[[], Any]:
    """Keep locks, and the log of what is made under them, until the owner is gone.

    Returns:
        A call that ends them at once.
    """
    release = weakref.finalize(owner, _end, leases, log)
    _kept.releases = [*_releases(), release]
    return release


def _releases() -> list[Any]:
    """Return the calls that end what this thread still keeps."""
    return [one for one in _kept.__dict__.get("releases", ()) if one.alive]


def _end(leases: list[int], log: int) -> None:
    close(leases)
    close_log(log)


@contextmanager
def ended_if_failed() -> Iterator[None]:
    """End the locks that this thread takes inside, where the block fails.

    Whoever keeps the traceback, as notebooks do, would otherwise keep the locks with it.
    """
    before = _releases()
    try:
        yield
    except BaseException:
        for release in _releases():
            if release not in before:
                release()
        raise


def _take(path: Path, mode: int, patience: float = 0.0) -> int:
    until = time.monotonic() + patience
    while True:
        lease = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if lock(lease, path, mode | fcntl.LOCK_NB):
            return lease
        removed = not _is_at(lease, path)
        os.close(lease)
        if not removed and time.monotonic() >= until:
            raise ArtifactError(f"{path.parent} is being written by another process: wait for it")
        time.sleep(0.0 if removed else 0.05)


def remove_marks(folder: Path, draft: str) -> None:
    """Remove leases and, last, the draft of a complete artifact."""
    for lease in folder.glob(f"{LEASE}*"):
        lease.unlink(missing_ok=True)
    (folder / draft).unlink(missing_ok=True)


def remove_leftovers(folder: Path, draft: str) -> None:
    """Tidy a complete artifact whose process was killed right after it wrote the manifest."""
    if not (folder / draft).exists() and not any(folder.glob(f"{LEASE}*")):
        return
    with suppress(OSError, ArtifactError):  # read-only, or its process is about to do it
        leases, _ = take_leases(folder)
        remove_marks(folder, draft)
        close(leases)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread is inside this block for ``folder``, then enter it.

    For what several processes need and one of them should make, such as a cache. A thread that is
    inside already goes on, as it would wait for itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / f"{LEASE}-turn").resolve()
    inside: set[Path] = _turns.__dict__.setdefault("inside", set())
    if path in inside:
        yield
        return
    while True:
        turn = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if lock(turn, path, fcntl.LOCK_EX):
            break
        os.close(turn)  # the process before this one removed it
    inside.add(path)
    try:
        yield
    finally:
        inside.remove(path)
        path.unlink(missing_ok=True)
        os.close(turn)
