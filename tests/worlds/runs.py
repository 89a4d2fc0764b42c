"""Whole runs, as processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

COUNTS = "counts.json"
"""Lies next to the work folder of the shared run."""


def smoke(work: Path) -> list[str]:
    """Return the command; runs that are compared are processes of their own, alike in threads."""
    return [sys.executable, "-m", "gmail_align", "run", "smoke", "--work", str(work), "--quiet"]


def counted_smoke(work: Path, counts: Path) -> list[str]:
    """Return the command of :func:`smoke` that also writes what it decoded and embedded."""
    script = Path(__file__).with_name("counted.py")
    return [sys.executable, str(script), str(counts), *smoke(work)[3:]]
