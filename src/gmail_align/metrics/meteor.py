"""METEOR 1.5, driven through its own jar: one process scores any number of captioners.

Loading the paraphrase table takes about 6 s and scoring 1,000 captions 2 s, so the process is
shared and runs beside the other metrics.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import IO

import numpy as np

from gmail_align.errors import GmailAlignError
from gmail_align.metrics.bootstrap import Values
from gmail_align.metrics.java import jar, java_command, last_line


@dataclass(frozen=True)
class MeteorScores:
    """METEOR of one captioner, 0..1.

    Attributes:
        corpus: the published number, from statistics summed over images.
        per_image: one score an image; their mean is not ``corpus``.
    """

    corpus: float
    per_image: Values


def meteor(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    timeout: float = 1800.0,
) -> dict[str, MeteorScores]:
    """Score tokenised captions of several systems against the same references.

    Args:
        systems: name -> one caption an image.
        references: for each image, its captions.
        timeout: seconds for everything.

    Raises:
        MissingExtraError: Java or pycocoevalcap is not installed.
        GmailAlignError: Java failed or took too long.
    """
    with meteor_in_background(systems, references, timeout=timeout) as scores:
        return scores.result()


@contextmanager
def meteor_in_background(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    timeout: float = 1800.0,
) -> Iterator[Future[dict[str, MeteorScores]]]:
    """Score in a thread while the caller does something else; see `meteor`.

    Every failure comes out of the future. However the block ends, the process is dead after it.
    """
    with tempfile.TemporaryFile() as stderr, ThreadPoolExecutor(1) as pool:
        try:
            jvm = _Jvm(stderr, timeout)
        except GmailAlignError as error:
            failed: Future[dict[str, MeteorScores]] = Future()
            failed.set_exception(error)
            yield failed
            return
        try:
            yield pool.submit(_score, jvm, systems, references)
        finally:
            jvm.kill()


class _Jvm:
    """A running METEOR: lines in, lines out, killed after ``timeout`` seconds."""

    def __init__(self, stderr: IO[bytes], timeout: float) -> None:
        archive = jar("meteor/meteor-1.5.jar")
        # A path with a space is lost when the jar looks for its table itself, so name the table.
        table = str(jar("meteor/data/paraphrase-en.gz"))
        command = java_command("-Xmx2G", "-XX:+UseSerialGC", "-jar", str(archive))
        command += ["-", "-", "-stdio", "-l", "en", "-norm", "-a", table]
        self.stderr, self.timeout = stderr, timeout
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
            )
        except OSError as error:
            raise GmailAlignError(f"{command[0]} did not start: {error}") from error
        self.timer = threading.Timer(timeout, self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def ask(self, requests: Iterable[str], replies: int) -> list[str]:
        """Send ``requests`` from a thread of their own, so that no pipe fills; read the replies."""
        feeder = threading.Thread(target=self._feed, args=(list(requests),), daemon=True)
        feeder.start()
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(replies)]
        feeder.join()
        if lines and not lines[-1]:
            raise GmailAlignError(self._reason())
        return [line.decode().strip() for line in lines]

    def kill(self) -> None:
        """End the process and collect it."""
        self.timer.cancel()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _feed(self, requests: list[str]) -> None:
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):  # the reader reports a process that is gone
            for request in requests:
                self.process.stdin.write(f"{request}\n".encode("utf-8", errors="replace"))
            self.process.stdin.flush()

    def _reason(self) -> str:
        if not self.timer.is_alive():
            return f"METEOR did not finish in {self.timeout:g} s"
        self.stderr.seek(0)
        return f"METEOR's Java process ended early: {last_line(self.stderr.read())}"


def _score(
    jvm: _Jvm, systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, MeteorScores]:
    """Match every different line once, then aggregate each system's statistics."""
    lines = {
        name: [_line(*pair) for pair in zip(captions, references, strict=True)]
        for name, captions in systems.items()
    }
    unique = list(dict.fromkeys(chain.from_iterable(lines.values())))
    statistics = dict(zip(unique, jvm.ask(unique, len(unique)), strict=True))
    scores = {}
    for name, own in lines.items():
        request = " ||| ".join(["EVAL", *(statistics[line] for line in own)])
        *per_image, corpus = (float(reply) for reply in jvm.ask([request], len(own) + 1))
        scores[name] = MeteorScores(corpus, np.array(per_image))
    return scores


def _line(caption: str, references: Sequence[str]) -> str:
    """Return METEOR's request for one image; its separator may not occur in a caption."""
    fields = [" ".join(text.replace("|||", " ").split()) for text in (*references, caption)]
    return " ||| ".join(["SCORE", *fields])
