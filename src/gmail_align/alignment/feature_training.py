"""Training of the generated head alone: batches, loss terms and steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gmail_align.alignment.feature_config import FeatureAlignConfig, FeatureWeights
from gmail_align.alignment.feature_data import FeatureTask
from gmail_align.alignment.feature_head import Residual, Rows, Space
from gmail_align.alignment.terms import TERMS, Comparison, Features, Term
from gmail_align.alignment.training_free import AffineMap
from gmail_align.data.batches import batch_indices
from gmail_align.runtime import stable_seed
from gmail_align.training.loop import FitReport, fit, pairs_rate, trained_parameters

Evaluate = Callable[[int], Mapping[str, float]]
"""Step -> figures of the present head, with the ``score`` that is maximised."""

HOLD: Final = Term(
    "hold",
    frozenset({"generated", "start"}),
    lambda features, how: (features["generated"] - features["start"]).square().mean(dim=-1),
)
"""The term that keeps a head near its start."""
_TERMS: Final = (*(term for term in TERMS if term.name in FeatureWeights.model_fields), HOLD)
_IN_SPACE: Final = ("align", "hold")
"""Terms of coordinates about the real mean; the others compare whole features."""


@dataclass(frozen=True)
class Learner:
    """What heads of one task are trained with.

    Attributes:
        task: Features, their groups and texts.
        space: Where heads are learnt.
        rows: All rows in it.
        config: Terms, head and optimisation.
        seed: Of the head and the batches.
    """

    task: FeatureTask
    space: Space
    rows: Rows
    config: FeatureAlignConfig
    seed: int

    @property
    def terms(self) -> dict[Term, float]:
        """The terms that are trained, with their weights."""
        weights = {term: float(getattr(self.config.weights, term.name)) for term in _TERMS}
        return {
            term: weight
            for term, weight in weights.items()
            if weight > 0 and not ("texts" in term.needs and self.task.texts is None)
        }

    def train(
        self,
        residual: Residual,
        start: AffineMap,
        real: Int64[Tensor, " a"],
        evaluate: Evaluate,
        *,
        steps: int,
        folder: Path | None = None,
        label: str = "features",
    ) -> FitReport:
        """Train a residual on some real rows and the generated rows of their groups.

        Args:
            residual: What is trained, in place.
            start: What it is added to.
            real: The real rows.
            evaluate: The guard.
            steps: How many steps.
            folder: Where checkpoints go; None keeps none.
            label: Name shown with the progress.
        """
        config, done = self.config, [0]
        marked = torch.zeros(len(self.rows.real), dtype=torch.bool)
        marked[real] = True
        batches = _Batches(self.task, real, self.task.groups.trained_on(marked), self.seed)
        centre = self.rows.real[real].mean(0)

        def loss(step: int) -> dict[str, Tensor]:
            done[0] = step + 1
            generated, partner = batches.of(step, config.batch_size)
            losses = self._losses(residual, start, centre, generated, partner)
            total = torch.stack([self.terms[term] * own.mean() for term, own in losses.items()])
            return {term.name: own.mean() for term, own in losses.items()} | {"total": total.sum()}

        return fit(
            trained_parameters(residual),
            loss,
            config.optim.model_copy(update={"steps": steps}),
            seed=self.seed,
            folder=folder,
            evaluate=lambda: evaluate(done[0]),
            label=label,
            rate=pairs_rate(config.batch_size),
        )

    def _losses(
        self,
        residual: Residual,
        start: AffineMap,
        centre: Float[Tensor, " k"],
        generated: Int64[Tensor, " b"],
        real: Int64[Tensor, " b"],
    ) -> dict[Term, Tensor]:
        """Return one value a pair of each term."""
        rows = self.rows.generated[generated]
        base = start(rows)
        head = base + residual(rows)
        inside = {
            "generated": head - centre,
            "target": self.rows.real[real] - centre,
            "start": base - centre,
        }
        terms, how = self.terms, self._comparison(generated, real)
        whole: Features = {}
        if any(term.name not in _IN_SPACE for term in terms):
            whole = self._whole(generated, real, head - rows)
        return {
            term: term.losses(inside if term.name in _IN_SPACE else whole, how) for term in terms
        }

    def _whole(
        self, generated: Int64[Tensor, " b"], real: Int64[Tensor, " b"], change: Tensor
    ) -> Features:
        """Return whole features, as comparisons with texts need them."""
        space, task = self.space, self.task
        moved = task.generated.array[generated].float()
        if self.config.start != "identity":
            moved = moved + space.rest
        features = {
            "generated": moved + space.scale * change @ space.axes.T,
            "frozen": task.real.array[real].float(),
        }
        if task.texts is not None and task.groups.texts is not None:
            features["texts"] = task.texts.array[task.groups.texts[generated]].float()
        return features

    def _comparison(self, generated: Int64[Tensor, " b"], real: Int64[Tensor, " b"]) -> Comparison:
        group, config = self.task.groups.generated[generated], self.config
        return Comparison(
            torch.stack([real, group, group], dim=1),
            config.temperature,
            "softmax",
            1 / config.temperature,
            direction=config.direction,
            positives=config.positives,
        )


class _Batches:
    """Generated rows of a step, and a real row of the same group for each."""

    def __init__(
        self,
        task: FeatureTask,
        real: Int64[Tensor, " a"],
        generated: Int64[Tensor, " b"],
        seed: int,
    ) -> None:
        self.generated, self.seed, self.group_of = generated, seed, task.groups.generated
        groups, order = task.groups.real[real].sort(stable=True)
        self.real = real[order]
        self.groups, self.sizes = groups.unique_consecutive(return_counts=True)
        self.starts = self.sizes.cumsum(0) - self.sizes

    def of(self, step: int, size: int) -> tuple[Int64[Tensor, " b"], Int64[Tensor, " b"]]:
        """Return the rows of a step: generated ones, and a real one drawn for each."""
        places = batch_indices(step, size, len(self.generated), stable_seed(self.seed, "batches"))
        generated = self.generated[torch.from_numpy(places)]
        group = torch.searchsorted(self.groups, self.group_of[generated])
        draw = np.random.default_rng(stable_seed(self.seed, "partners", step)).random(size)
        offset = (torch.from_numpy(draw) * self.sizes[group]).long()
        return generated, self.real[self.starts[group] + offset]
