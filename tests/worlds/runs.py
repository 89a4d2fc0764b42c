"""Whole runs, as processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path


def smoke(work: Path) -> list[str]:
    """Return the command; runs that are compared are processes of their own, alike in threads."""
    return [sys.executable, "-m", "gmail_align", "run", "smoke", "--work", str(work), "--quiet"]
