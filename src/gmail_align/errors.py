"""Everything that can go wrong, drawn as a tree.

    GmailAlignError                 any failure this package raises on purpose
    ├── UserError                   the user's mistake; the command line exits with 2
    │   ├── ConfigError             an unknown key, a wrong type, a bad ``--set``
    │   ├── DataError               missing, malformed or inconsistent input data
    │   ├── ArtifactError           a folder that is not the artifact it should be
    │   ├── ModelError              a model folder that cannot be used
    │   ├── MissingExtraError       an optional dependency that is not installed
    │   ├── RemoteError             a URL that is not there, not allowed or not reached
    │   ├── DiskFullError           no space left where output is written
    │   └── TrainingError           a loss or a gradient that is not finite
    Terminated                      the system asked the process to end (SIGTERM)

Each message is one sentence: what is wrong, where, and what to do.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM = {*_FULL, errno.ENOMEM}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_UNWRITABLE = {
    *(errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
}


class GmailAlignError(Exception):
    """Base class of every error this package raises on purpose."""


class UserError(GmailAlignError):
    """The user's mistake; the command line prints the message and exits with 2."""


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


class DataError(UserError):
    """Input data that is missing, malformed or inconsistent."""


class ArtifactError(UserError):
    """A folder that is not the artifact it should be, belongs to another run, or is read-only."""


class ModelError(UserError):
    """A model folder that cannot be loaded or does not fit the task."""


class MissingExtraError(UserError):
    """An optional dependency that is needed and not installed."""


class RemoteError(UserError):
    """A URL that cannot be used now; unlike damaged data, it is never left out and gone on from."""


class DiskFullError(UserError):
    """No space is left on the device that output is written to."""


class TrainingError(UserError):
    """A training whose loss or gradient is not finite: other settings or data are needed."""

    def __init__(self, message: str = "", step: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        """The step that broke, where one did."""


class Terminated(BaseException):
    """The system asked the process to end; like an interruption, no handler stops it."""


@contextmanager
def damage_explained(
    path: object, error: type[UserError] = DataError, advice: str = ""
) -> Iterator[None]:
    """Turn whatever a parser raises about ``path`` into "PATH is damaged: REASON; ADVICE".

    What the operating system refuses is not damage: the file is missing, or it cannot be read.
    Errors of this package, a full disk, a lack of memory and a fault inside torch pass.

    Raises:
        UserError: of class ``error``, when the file cannot be read or parsed.
    """
    if isinstance(path, Path):
        require_end(path, error)
    advice = advice and f"; {advice}"
    try:
        yield
    except GmailAlignError:
        raise
    except Exception as cause:
        if is_out_of_memory(cause) or "INTERNAL ASSERT FAILED" in str(cause):
            raise
        refusal = _refusal(cause)
        if refusal in _NO_ROOM:
            raise
        if refusal in _ABSENT or isinstance(cause, FileNotFoundError):
            within = getattr(cause, "filename", None) if isinstance(path, Path) else None
            raise error(f"{within or path} is missing{advice}") from cause
        if refusal is not None:
            raise error(f"{path} cannot be read: {os.strerror(refusal)}") from cause
        if isinstance(cause, ImportError):
            raise error(f"{path} cannot be read here: {first_line(cause)}") from cause
        raise error(f"{path} is damaged: {first_line(cause)}{advice}") from cause


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether Python, torch or the operating system ran out of memory."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = {RuntimeError: "can't allocate memory", ImportError: "failed to map segment"}
    return any(isinstance(error, kind) and words in str(error) for kind, words in said.items())


def require_end(path: Path, error: type[UserError] = DataError) -> None:
    """Refuse a pipe, a socket and a device: reading one may never end.

    Raises:
        UserError: of class ``error``.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens it says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise error(f"{path} is a pipe or a device: give a regular file")


def _refusal(error: BaseException | None) -> int | None:
    """Return the number by which the operating system refused something; None where it did not.

    Libraries of other languages keep the number in their message alone.
    """
    while error is not None:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if number:
            return int(number[1])
        error = error.__cause__
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters, or its class.

    A line that ends with a colon is followed by the next one.
    """
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return (f"{first} {others[0].strip()}" if first.endswith(":") and others else first)[:200]


def listed(names: Iterable[object], what: str) -> str:
    """Return ``3 questions: a, b, c``: how many there are, and the first three by name."""
    every = list(map(str, names))
    shown = ", ".join(every[:3]) + (", ..." if len(every) > 3 else "")
    return f"{len(every)} {what}{'' if len(every) == 1 else 's'}: {shown}"


@contextmanager
def full_disk_explained(path: Path | str) -> Iterator[None]:
    """Turn "no space left" into one sentence that names ``path``, or the temporary folder.

    Raises:
        DiskFullError: no space is left, the quota is used up, or a file is larger than allowed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            f"no space is left to write {path} ({error.strerror}): free some and run the same "
            "command again"
        ) from error
    except sqlite3.OperationalError as error:
        if "full" not in str(error):
            raise
        folder = os.environ.get("SQLITE_TMPDIR") or tempfile.gettempdir()
        raise DiskFullError(
            f"no space is left for temporary files in {folder}: free some, or set TMPDIR to "
            "another folder"
        ) from error


@contextmanager
def unwritable_explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into one sentence.

    Raises:
        ArtifactError: it is read-only, not permitted, too long a name, or no folder can be there.
        DiskFullError: no space is left.
    """
    try:
        with full_disk_explained(path):
            yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = path if error.filename is None else error.filename
        raise ArtifactError(
            f"{where} cannot be written ({error.strerror}): choose another folder"
        ) from error
