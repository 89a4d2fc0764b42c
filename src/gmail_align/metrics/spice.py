"""SPICE 1.0, run from its own jar where the CoreNLP jars that it needs are.

pip brings SPICE without CoreNLP 3.6.0. Where that is absent SPICE is reported as unavailable, with
the command that fetches it; nothing else is ever given under its name.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gmail_align.errors import GmailAlignError, MissingExtraError
from gmail_align.metrics.bootstrap import Values
from gmail_align.metrics.java import jar, java_command, java_environment, last_line

LIB = "SPICE_LIB"
"""Environment variable: the folder of the CoreNLP jars."""

_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_GET_CORENLP = (
    'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as g; g()"'
)
_PACKAGES = ("lang", "util", "util.concurrent", "math", "net", "text")
_OPENED = " ".join(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _PACKAGES)
"""SPICE reaches into these, which Java 17 and later forbid unless told. Java 8 has no such option,
so it goes through an environment variable that Java 8 does not read."""
_LARGEST, _SMALLEST = 8, 3
"""Gigabytes of heap: what the published script takes, and what the models need."""


def corenlp() -> tuple[Path, ...]:
    """Return the two CoreNLP jars, from ``$SPICE_LIB`` or from beside pycocoevalcap's SPICE.

    Raises:
        MissingExtraError: they are nowhere, or pycocoevalcap is not installed.
    """
    given = os.environ.get(LIB)
    for place in ([Path(given)] if given else []) + [_home() / "lib"]:
        jars = tuple(place / name for name in _CORENLP)
        if all(path.is_file() for path in jars):
            return jars
    raise MissingExtraError(
        f"SPICE needs {' and '.join(_CORENLP)}, which pip does not bring: run {_GET_CORENLP} "
        f"(384 MB), or set {LIB} to their folder"
    )


@contextmanager
def spice_process(*, timeout: float | None = None) -> Iterator[Spice]:
    """Make SPICE ready to score while the caller does something else.

    However the block ends, its process is dead after it.

    Args:
        timeout: seconds for everything; by default half an hour and 2 s a caption.

    Raises:
        MissingExtraError: the CoreNLP jars are nowhere, or pycocoevalcap is not installed.
    """
    corenlp()
    with ThreadPoolExecutor(1) as pool:
        process = Spice(pool, timeout)
        try:
            yield process
        finally:
            process.kill()


class Spice:
    """One run of the jar, which can be ended from another thread."""

    def __init__(self, pool: ThreadPoolExecutor, timeout: float | None) -> None:
        self.timeout, self._pool = timeout, pool
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def score(
        self, systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]
    ) -> Future[dict[str, Values]]:
        """Score tokenised captions of several systems in a thread of its own.

        The future holds SPICE of every image, 0..1, or NaN where neither the caption nor a
        reference has anything to compare; or why there is none.
        """
        return self._pool.submit(self._score, systems, references)

    def _score(
        self, systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]
    ) -> dict[str, Values]:
        pairs = {
            f"{name} {at}": {"test": caption, "refs": list(references[at])}
            for name, captions in systems.items()
            for at, caption in enumerate(captions)
        }
        rows = [{"image_id": key} | pair for key, pair in pairs.items()]
        with tempfile.TemporaryDirectory() as folder:
            given, output = Path(folder, "captions.json"), Path(folder, "scores.json")
            given.write_text(json.dumps(rows), encoding="utf-8")
            seconds = 1800.0 + 2 * len(rows) if self.timeout is None else self.timeout
            self._run(command(given, output), folder, seconds)
            scores = _read(output, pairs)
        return {
            name: np.array([scores[f"{name} {at}"] for at in range(len(captions))])
            for name, captions in systems.items()
        }

    def kill(self) -> None:
        """End the process, now or as soon as it would start."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def _run(self, arguments: list[str], folder: str, seconds: float) -> None:
        options = f"{os.environ.get('JDK_JAVA_OPTIONS', '')} {_OPENED}".strip()
        with self._lock:
            if self._ended:
                raise GmailAlignError("SPICE was not started")
            try:
                self._process = subprocess.Popen(
                    arguments,
                    cwd=folder,
                    env=java_environment(JDK_JAVA_OPTIONS=options),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:
                raise GmailAlignError(f"{arguments[0]} did not start: {error}") from error
        try:
            _, stderr = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            self._process.communicate()
            raise GmailAlignError(f"SPICE did not finish in {seconds:g} s") from error
        if self._process.returncode != 0:
            raise GmailAlignError(f"SPICE failed: {_cause(stderr)}")


def command(given: Path, scores: Path) -> list[str]:
    """Return the command line that scores the captions in ``given`` into ``scores``.

    No cache is asked for: it breaks on Java 17 and on long captions, and writes beside the jar.

    Raises:
        MissingExtraError: SPICE, CoreNLP or Java is not installed.
        GmailAlignError: there is too little memory.
    """
    path = [*corenlp(), jar("spice/spice-1.0.jar"), *sorted((_home() / "lib").glob("*.jar"))]
    heap = f"-Xmx{_heap()}G"
    classes = os.pathsep.join(map(str, dict.fromkeys(path)))
    start = java_command(heap, "-cp", classes, "edu.anu.spice.SpiceScorer")
    return [*start, str(given), "-out", str(scores), "-silent"]


def _heap() -> int:
    """Return gigabytes of heap: what the published script takes, less on a small machine."""
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return _LARGEST
    return max(_SMALLEST, min(_LARGEST, int(pages * 0.8 / 2**30)))


def _home() -> Path:
    return jar("spice/spice-1.0.jar").parent


def _read(file: Path, wanted: Collection[str]) -> dict[str, float]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        scores = {row["image_id"]: _number(row["scores"]["All"]["f"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GmailAlignError(f"SPICE wrote no scores that can be read: {error}") from error
    missing = [key for key in wanted if key not in scores]
    if missing:
        raise GmailAlignError(f"SPICE returned no score for {len(missing)} captions: {missing[0]}")
    return scores


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _cause(stderr: bytes) -> str:
    """Return the line that names the exception, else the last one."""
    lines = [line.strip() for line in stderr.decode("utf-8", errors="replace").splitlines()]
    named = [line for line in lines if "Exception" in line or "Error" in line]
    return named[0] if named else last_line(stderr)
