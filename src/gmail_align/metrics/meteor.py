"""METEOR 1.5, driven through its own jar: one process scores any number of captioners.

Loading the paraphrase table takes some seconds, so the process is started before anything else
and shared, and it works beside the other metrics.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from typing import IO

import numpy as np

from gmail_align.errors import GmailAlignError
from gmail_align.metrics.bootstrap import Values
from gmail_align.metrics.java import jar, java_command, java_environment, last_line

STATISTICS = 23
"""Numbers that METEOR counts for a caption and its best reference."""

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MODULES = np.array([1.0, 0.6, 0.8, 0.6])
"""What a match is worth: exact, stem, synonym, paraphrase."""


def corpus_meteor(sums: Values) -> Values:
    """Return METEOR (rows,), 0..1, of summed statistics (rows, 23).

    Denkowski & Lavie (2014), with the English parameters of version 1.5: a mean of precision and
    recall, words weighed by kind, times a penalty for scattered matches. Columns: length of the
    caption and of the reference; function words of each; for each kind of match, content words
    and then function words of each; chunks, 0 for a caption that is its reference, which METEOR
    does not count either; matched words of each.
    """
    length, reference_length, function, reference_function = sums[:, :4].T
    matches = sums[:, 4:20].reshape(-1, 4, 2, 2)  # kind of match, content or function, side
    share = np.array([_DELTA, 1 - _DELTA])
    weighed = np.einsum("rmws,m,w->rs", matches, _MODULES, share)
    chunks, matched, reference_matched = sums[:, 20:].T
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = weighed[:, 0] / _weighed_length(length, function)
        recall = weighed[:, 1] / _weighed_length(reference_length, reference_function)
        mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
        scattered = chunks / ((matched + reference_matched) / 2)
    penalty = _GAMMA * scattered**_BETA
    score: Values = np.nan_to_num(mean * (1 - penalty))
    return score


def _without_whole(statistics: Values) -> Values:
    """Take the one chunk of a caption that is its reference away, as METEOR does when it sums."""
    lengths, matches = statistics[:, :2], statistics[:, 21:]
    whole = (matches == lengths).all(axis=1) & (statistics[:, 20] == 1)
    counted = statistics.copy()
    counted[whole, 20] = 0
    return counted


def _weighed_length(length: Values, function: Values) -> Values:
    return _DELTA * (length - function) + (1 - _DELTA) * function


@contextmanager
def meteor_process(*, timeout: float | None = None) -> Iterator[Meteor]:
    """Start METEOR, which loads while the caller does something else.

    Every failure comes out of the future that `Meteor.score` returns. However the block ends, by
    an exception or an interruption too, the process is dead after it.
    """
    with tempfile.TemporaryFile() as stderr, ThreadPoolExecutor(1) as pool:
        process = Meteor(stderr, pool, timeout)
        try:
            yield process
        finally:
            process.kill()


class Meteor:
    """A running METEOR: lines in, lines out, killed when its time is over."""

    def __init__(
        self, stderr: IO[bytes], pool: ThreadPoolExecutor, timeout: float | None = None
    ) -> None:
        self.timeout, self._stderr, self._pool = timeout, stderr, pool
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None
        self._failure: GmailAlignError | None = None
        try:
            self._process = _start(stderr)
        except GmailAlignError as error:
            self._failure = error

    def score(
        self, systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]
    ) -> Future[dict[str, Values]]:
        """Score tokenised captions of several systems in a thread of its own.

        The future holds METEOR's statistics (n, 23): `corpus_meteor` of the rows is the score of
        every image, of their sum the published number.
        """
        return self._pool.submit(self._score, systems, references)

    def kill(self) -> None:
        """End the process and collect it."""
        if self._timer is not None:
            self._timer.cancel()
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _score(
        self, systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]
    ) -> dict[str, Values]:
        """Match every different line once."""
        lines = {
            name: [_line(*pair) for pair in zip(captions, references, strict=True)]
            for name, captions in systems.items()
        }
        unique = list(dict.fromkeys(chain.from_iterable(lines.values())))
        statistics = dict(zip(unique, self._ask(unique), strict=True))
        return {
            name: _without_whole(np.array([statistics[line] for line in own]))
            for name, own in lines.items()
        }

    def _ask(self, requests: list[str]) -> list[list[float]]:
        """Send ``requests`` from a thread of their own, so that no pipe fills; read the replies."""
        if self._process is None or self._process.stdout is None:
            raise self._failure or GmailAlignError("METEOR is not running")
        limit = 600 + 0.5 * len(requests) if self.timeout is None else self.timeout
        self._timer = threading.Timer(limit, self._process.kill)
        self._timer.daemon = True
        self._timer.start()
        feeder = threading.Thread(target=self._feed, args=(requests,), daemon=True)
        feeder.start()
        replies = [self._numbers(self._process.stdout.readline()) for _ in requests]
        feeder.join()
        self._timer.cancel()  # the process may be asked again
        return replies

    def _feed(self, requests: list[str]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError, ValueError):  # the reader reports a process that is gone
            for request in requests:
                self._process.stdin.write(f"{request}\n".encode("utf-8", errors="replace"))
            self._process.stdin.flush()

    def _numbers(self, reply: bytes) -> list[float]:
        if not reply:
            raise GmailAlignError(self._reason())
        try:
            numbers = [float(word) for word in reply.split()]
        except ValueError:
            numbers = []
        if len(numbers) != STATISTICS:
            said = reply.decode("utf-8", errors="replace").strip()
            raise GmailAlignError(f"METEOR's reply is not {STATISTICS} numbers: {said[:200]}")
        return numbers

    def _reason(self) -> str:
        if self._timer is not None and not self._timer.is_alive():
            return f"METEOR did not finish in {self._timer.interval:g} s"
        self._stderr.seek(0)
        return f"METEOR's Java process ended early: {last_line(self._stderr.read())}"


def _start(stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    archive = jar("meteor/meteor-1.5.jar")
    # A path with a space is lost when the jar looks for its table itself, so name the table.
    table = str(jar("meteor/data/paraphrase-en.gz"))
    command = java_command("-Xmx2G", "-XX:+UseSerialGC", "-jar", str(archive))
    command += ["-", "-", "-stdio", "-l", "en", "-norm", "-a", table]
    try:
        return subprocess.Popen(
            command,
            env=java_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    except OSError as error:
        raise GmailAlignError(f"{command[0]} did not start: {error}") from error


def _line(caption: str, references: Sequence[str]) -> str:
    """Return METEOR's request for one image; its separator may not occur in a caption."""
    fields = [" ".join(text.replace("|||", " ").split()) for text in (*references, caption)]
    return " ||| ".join(["SCORE", *fields])
