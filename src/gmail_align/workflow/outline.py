"""The steps of a run in numbers: how many are made, how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gmail_align.progress import clock

_KNOWN: Final = 0.02
"""Share of the work from which on the time left is told."""


@dataclass(frozen=True)
class Outline:
    """What a run makes. Several processes read it: what is done is seen on disk."""

    weights: Mapping[Path, float]
    """File that says that a step is done -> how much of the work the step is, in any unit."""
    started: float = field(default_factory=time.time)

    def line(self, words: str, seconds: float) -> str:
        """Return the line of a finished step: its number, what it made, and the time left."""
        done = [path for path in self.weights if path.exists()]
        share = sum(self.weights[path] for path in done) / sum(self.weights.values())
        text = f"[{len(done)}/{len(self.weights)}] {words}: {clock(seconds)}"
        if share < _KNOWN or len(done) == len(self.weights):
            return text
        spent = time.time() - self.started
        return f"{text}; about {clock(spent * (1 - share) / share)} left in all"
