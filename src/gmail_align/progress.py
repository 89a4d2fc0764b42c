"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere.

Names of files, captions and models may hold control characters; :func:`printable` escapes them, so
that no data set can steer a terminal.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

LOG: Final = "stage.log"
"""File of an artifact's folder that keeps what was said while it was made; it is no content."""
_logs: set[int] = set()
_verbose = False
_quiet = False
_brief = False  # whether a finished job leaves no line of its own
_drawn = False  # whether a live bar stands on the terminal's last line
_PLAIN_SECONDS = 10.0
_SLOW = 0.1
"""Below so many units a second, a rate a minute is shown."""
_CLEAR = "\r\x1b[2K"
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed, marks that reverse text, and half surrogates."""


def printable(text: str) -> str:
    """Return ``text`` with its control characters as the escapes of JSON."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def set_quiet(quiet: bool) -> None:
    """Switch all progress output off (``--quiet``) or on."""
    global _quiet
    _quiet = quiet


def set_verbose(verbose: bool) -> None:
    """Show the time of every line, and the traceback of every error (``--verbose``), or not."""
    global _verbose
    _verbose = verbose


def is_verbose() -> bool:
    """Tell whether everything is to be shown."""
    return _verbose


def open_log(path: Path) -> int:
    """Keep what is said from now on in a file too; :func:`close_log` ends it."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    _logs.add(handle)
    write_to_logs(shlex.join(sys.argv))
    return handle


def close_log(handle: int) -> None:
    """End a log."""
    _logs.discard(handle)
    os.close(handle)


def write_to_logs(message: str) -> None:
    """Write one line into the open logs alone."""
    line = f"{_now()} {printable(message)}\n".encode(errors="replace")
    for handle in _logs:
        with suppress(OSError):  # a full disk stops the stage itself
            os.write(handle, line)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def say(message: str) -> None:
    """Write one line to stderr unless quiet, and into the logs."""
    write_to_logs(message)
    if not _quiet:
        _write((f"{_now()} " if _verbose else "") + printable(message) + "\n")


def clear_line() -> None:
    """Remove a live bar."""
    global _drawn
    if _drawn:
        write_stderr(_CLEAR)
        _drawn = False


@contextmanager
def brief() -> Iterator[None]:
    """Let the jobs inside leave no lines of their own: one line will name all of them."""
    global _brief
    before, _brief = _brief, True
    try:
        yield
    finally:
        _brief = before


def end_line() -> None:
    """Leave a live bar as it is and go to the next line, before something else is written."""
    if _drawn:
        _write("\n", clear=False)


def write_stderr(text: str) -> None:
    """Write to stderr; be silent from then on where its file cannot be written, as on a full disk.

    A stage ends for what it cannot write itself, and its exit code must not get lost with stderr.
    """
    if sys.stderr is None:  # it was closed before Python began
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _write(text: str, clear: bool = True) -> None:
    """Write to stderr, over a live bar when there is one."""
    global _drawn
    write_stderr((_CLEAR if _drawn and clear else "") + text)
    _drawn = not text.endswith("\n")


class Progress:
    """Counts finished units of one job and shows rate and time left."""

    def __init__(self, label: str, total: int, unit: str = "it", done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._done = self._first = done
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more finished units; ``note`` is shown behind the rate."""
        self._done += count
        now = time.monotonic()
        live = sys.stderr is not None and sys.stderr.isatty()
        due = now - self._last >= (0.1 if live else _PLAIN_SECONDS)
        if _quiet or not due:
            return
        self._last = now
        line = self._line(now, note)
        _write(line[: shutil.get_terminal_size().columns - 1] if live else line + "\n")

    def close(self, note: str = "") -> None:
        """Write the last line of the job."""
        line = self._line(time.monotonic(), note)
        write_to_logs(line)
        if _brief and not _verbose:
            clear_line()
        elif not _quiet:
            _write(line + "\n")

    def _line(self, now: float, note: str) -> str:
        seconds = max(now - self._start, 1e-9)
        rate = (self._done - self._first) / seconds
        left = (self.total - self._done) / rate if rate > 0 else float("inf")
        slow = 0 < rate < _SLOW
        speed = f"{60 * rate if slow else rate:.1f} {self.unit}/{'min' if slow else 's'}"
        parts = [f"{self.label} {self._done}/{self.total} {self.unit}", speed]
        parts.append(f"{clock(left)} left" if self._done < self.total else f"in {clock(seconds)}")
        return printable(", ".join([*parts, note] if note else parts))


def clock(seconds: float) -> str:
    """Return minutes and seconds."""
    if seconds == float("inf"):
        return "?"
    whole = int(seconds + 0.5)
    return f"{whole // 60}:{whole % 60:02d}"


@contextmanager
def progress(label: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Progress]:
    """Open a :class:`Progress` and close it at the end of the block."""
    bar = Progress(label, total, unit, done)
    yield bar
    bar.close()


def track(items: Iterable[T], label: str, total: int, unit: str = "it") -> Iterator[T]:
    """Yield ``items`` while showing progress."""
    with progress(label, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
