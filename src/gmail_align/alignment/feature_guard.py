"""The guard of features: what each candidate brings on real images that it was not fitted to.

Real images are held out in turn. In each turn every candidate (the features as they are, the mean
shift, the start, and the head after some steps) is fitted to the other real images and judged on
those held out. So every real image judges once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gmail_align.alignment.feature_head import new_residual
from gmail_align.alignment.feature_training import Learner
from gmail_align.alignment.guard import EASE
from gmail_align.alignment.losses import alignment_losses
from gmail_align.alignment.score import FEWEST, beyond_noise, cautious
from gmail_align.alignment.training_free import AffineMap
from gmail_align.artifacts import write_json
from gmail_align.data.batches import sample_rows
from gmail_align.metrics.bootstrap import Estimate, bootstrap_mean
from gmail_align.metrics.transfer import caption_transfer, class_transfer
from gmail_align.runtime import stable_seed

Values = Mapping[str, Sequence[float]]
"""Candidate -> one value a held-out real image; higher is better."""
RAW: Final = "raw"
SHIFT: Final = "shift"
FREE: Final = (RAW, SHIFT)
"""Candidates that cost nothing; the others have to beat both."""


@dataclass(frozen=True)
class Choice:
    """What is applied, and why."""

    kept: str
    """``raw``, ``shift``, the name of the start, or ``step N`` of the head."""
    scores: Mapping[str, float]
    """The mean over held-out real images, by candidate."""
    best: str
    """The best candidate that is neither raw nor shifted."""
    gains: Mapping[str, Estimate]
    """By how much it exceeds ``raw`` and ``shift``, with the 95% intervals."""
    message: str

    @property
    def step(self) -> int:
        """The step of the head that is kept; 0 without a head."""
        return int(self.kept.split()[1]) if self.kept.startswith("step ") else 0

    def notes(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        gains = {name: asdict(gain) for name, gain in self.gains.items()}
        return {
            "kept": self.kept,
            "applied": self.kept != RAW,
            "scores": dict(self.scores),
            "best": self.best,
            "gains": gains,
            "message": self.message,
        }


def judge(learner: Learner, whole: bool, folder: Path) -> Values:
    """Judge all candidates on every real image.

    Args:
        learner: The task.
        whole: Whether groups are held out whole.
        folder: Where the values of finished folds are kept.
    """
    folds = learner.task.groups.folds(learner.config.folds, learner.seed, whole=whole)
    values: dict[str, list[float]] = {}
    for number in range(int(folds.max()) + 1):
        path = folder / f"fold-{number}.json"
        if not path.exists():
            write_json(path, _Fold(learner, folds, number, whole).values())
        for name, own in json.loads(path.read_bytes()).items():
            values.setdefault(name, []).extend(own)
    return values


def choose(values: Values, seed: int, what: str) -> Choice:
    """Choose what is applied.

    A candidate that was trained, or is more than a shift, has to beat both the features as they are
    and the mean shift by more than its 95% interval over real images, of which it takes
    :data:`~gmail_align.alignment.score.FEWEST` or more. Else the better of these two
    is taken.

    Args:
        values: Of every candidate.
        seed: Of the bootstrap.
        what: What the values are, for the message.
    """
    scores = {name: float(np.mean(own)) for name, own in values.items()}
    free = max(FREE, key=lambda name: scores[name])
    others = [name for name in scores if name not in FREE]
    if not others:
        return Choice(free, scores, free, {}, f"{_told(scores, FREE, what)}: {free} is applied")
    best = max(others, key=lambda name: scores[name])
    gains = {}
    for name in FREE:
        each = np.subtract(values[best], values[name])
        gains[name] = cautious(bootstrap_mean(each, seed=seed), int(np.count_nonzero(each)))
    short = [name for name, gain in gains.items() if not beyond_noise(gain.low, gain.n)]
    told = _told(scores, (*FREE, best), what)
    by = ", ".join(
        f"{name} by {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        for name, gain in gains.items()
    )
    last = others[-1]
    harm = f"; training to {last} would bring {scores[last]:.4f}, less than raw"
    harm = harm if scores[last] < scores[RAW] else ""
    if not short:
        return Choice(best, scores, best, gains, f"{told}: {best} is applied, it beats {by}{harm}")
    count = len(values[best])
    why = f"{best} is refused, it does not beat {' and '.join(short)} beyond noise ({by}){harm}"
    why += f"; {count} real images cannot tell, {FEWEST} can" if count < FEWEST else ""
    applied = "features stay as they are" if free == RAW else "the mean shift alone is applied"
    return Choice(free, scores, best, gains, f"{told}: {why}; {applied}")


def _told(scores: Mapping[str, float], names: Sequence[str], what: str) -> str:
    return f"{what}: " + ", ".join(f"{name} {scores[name]:.4f}" for name in names)


class _Fold:
    """One turn: which rows are fitted to, which are judged, and the values of every candidate."""

    def __init__(
        self, learner: Learner, folds: Int64[Tensor, " n"], number: int, whole: bool
    ) -> None:
        self.learner, self.number = learner, number
        task, limit = learner.task, learner.config.judge_limit
        self.train = ((folds >= 0) & (folds != number)).nonzero()[:, 0]
        tested = folds == number
        self.test = _some(tested.nonzero()[:, 0], limit, learner.seed)
        groups = task.groups
        near = groups.trained_on(tested if whole else folds >= 0)
        if groups.classes is None:
            near = near[torch.isin(groups.generated[near], groups.real[self.test])]
        self.judged = _some(near, limit, learner.seed)
        self.fitted = groups.trained_on(torch.zeros_like(tested).index_fill(0, self.train, True))

    def values(self) -> dict[str, list[float]]:
        """Fit and judge every candidate."""
        learner, config = self.learner, self.learner.config
        rows = learner.rows
        shift = rows.start(SHIFT, self.train, self.fitted)
        plain = rows.start("identity", self.train, self.fitted)
        values = {RAW: self._judge(plain, None), SHIFT: self._judge(shift, None)}
        start = rows.start(config.start, self.train, self.fitted)
        if config.start not in ("identity", SHIFT):
            values[config.start] = self._judge(start, None)
        residual = new_residual(config, rows.real.shape[1], learner.seed)
        if residual is not None:

            def evaluate(step: int) -> dict[str, float]:
                if step:
                    values[f"step {step}"] = self._judge(start, residual)
                return {"score": 0.0}

            learner.train(
                residual,
                start,
                self.train,
                evaluate,
                steps=config.optim.steps,
                label=f"held out, part {self.number + 1}",
            )
        return values

    @torch.no_grad()
    def _judge(self, start: AffineMap, residual: Any) -> list[float]:
        """Return one value for each held-out real image."""
        learner, groups = self.learner, self.learner.task.groups
        rows = learner.rows.generated[self.judged]
        made = start(rows) + (0 if residual is None else residual(rows))
        real = learner.rows.real[self.test]
        ours, theirs = groups.real[self.test], groups.generated[self.judged]
        if learner.config.select == "align":
            return self._eq1(made, real, ours, theirs).tolist()
        if groups.classes is not None:
            return class_transfer(made, theirs, real, ours).tolist()
        identity = residual is None and bool((start.shift == 0).all())
        head = learner.space.lift(start, residual, moved=not identity)
        task = learner.task
        whole = head(task.generated.array[self.judged].float())
        return caption_transfer(whole, theirs, task.real.array[self.test].float(), ours).tolist()

    def _eq1(
        self,
        made: Float[Tensor, "m k"],
        real: Float[Tensor, "n k"],
        ours: Int64[Tensor, " n"],
        theirs: Int64[Tensor, " m"],
    ) -> Tensor:
        """Return minus the loss of Eq. 1 of each held-out real image and a generated one of it.

        As the guard of encoders, at the best of several temperatures from the configured one.
        """
        config = self.learner.config
        order = theirs.argsort(stable=True)
        known, sizes = theirs[order].unique_consecutive(return_counts=True)
        place = torch.searchsorted(known, ours)
        turn = torch.arange(len(ours)) % sizes[place]
        partner = order[(sizes.cumsum(0) - sizes)[place] + turn]
        centre = self.learner.rows.real[self.train].mean(0)
        losses = [
            alignment_losses(
                made[partner] - centre,
                real - centre,
                temperature=config.temperature * ease,
                same=torch.stack([torch.arange(len(ours)), ours], dim=1),
                direction=config.direction,
            )
            for ease in EASE
        ]
        return -min(losses, key=lambda rows: float(rows.mean()))


def _some(rows: Int64[Tensor, " n"], limit: int, seed: int) -> Int64[Tensor, " k"]:
    return rows[torch.from_numpy(sample_rows(len(rows), limit, stable_seed(seed, "judged")))]
