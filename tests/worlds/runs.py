"""Whole runs, as processes of their own, and what makes them quick."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

COUNTS = "counts.json"
"""Lies next to the work folder of the shared run."""


def counted_smoke(work: Path, counts: Path) -> list[str]:
    """Return the command of a smoke run that also writes what it decoded and embedded.

    Runs that are compared are processes of their own, alike in threads.
    """
    script = Path(__file__).with_name("counted.py")
    words = ["run", "smoke", "--work", str(work), "--quiet", "--json"]
    return [sys.executable, str(script), str(counts), *words]


def with_few_paraphrases(jar: Callable[[str], Path], folder: Path) -> Callable[[str], Path]:
    """Return ``jar`` with the first paraphrases of METEOR's table, which loads for 10 seconds."""
    few = folder / "few-paraphrases.gz"

    def table_or_jar(name: str) -> Path:
        if not name.endswith("paraphrase-en.gz"):
            return jar(name)
        if not few.exists():
            with gzip.open(jar(name)) as whole, gzip.open(few, "wb") as part:
                part.writelines(islice(whole, 3000))
        return few

    return table_or_jar
