"""Linear probe: how much a linear classifier gets out of features.

SynCLR's protocol (Tian et al. 2023, appendix B.5, after CLIP's): every dimension is standardised,
a multinomial logistic regression is fitted by L-BFGS for each of 45 weight decays, the best on
validation images is chosen, and the model is fitted again on training and validation images.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import Values
from gmail_align.metrics.ranks import require_features, require_labels
from gmail_align.runtime import random_source

GRID: Final[tuple[float, ...]] = tuple(float(decay) for decay in np.logspace(-6, 5, 45))
"""SynCLR's weight decays."""
VALIDATION_SHARE: Final = 0.2
"""Training images held out where there are no validation images, as SynCLR does."""
_MOST_STEPS: Final = 1000


@dataclass(frozen=True)
class Labelled:
    """One split: features (n, d), and the class of each image, integers (n,)."""

    features: Tensor
    labels: Tensor

    def arrays(self) -> tuple[Values, NDArray[np.int64]]:
        """Return both as numpy arrays, features in float64."""
        return self.features.double().cpu().numpy(), self.labels.cpu().numpy().astype(np.int64)


@dataclass(frozen=True)
class ProbeFit:
    """A fitted probe and what it classified right.

    Attributes:
        hits: (test images,) 1 where the class was right.
        weight_decay: the one that was chosen.
        validation: score of each weight decay of the grid on validation images.
        unconverged: how many fits stopped at the most steps.
    """

    hits: Values
    weight_decay: float
    validation: dict[float, float]
    unconverged: int


def linear_probe(
    train: Labelled,
    validation: Labelled | None,
    test: Labelled,
    *,
    by_class: bool = False,
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> ProbeFit:
    """Choose the weight decay on validation images, fit again on both, and classify test images.

    The objective is sum of cross-entropies + weight_decay / 2 * |W|^2, as scikit-learn's with
    C = 1 / weight_decay; biases are not decayed. Of equal scores the smaller decay is taken.

    Args:
        train: training images.
        validation: validation images; None holds out a fifth of the training images by the seed.
        test: test images.
        by_class: choose by the mean over classes and not by accuracy.
        grid: weight decays, in any order.
        seed: of the held-out fifth.

    Raises:
        UserError: features or labels do not fit, or there are fewer than two classes.
    """
    _check(train, validation, test, grid)
    fit_on, choose_on = (train, validation) if validation is not None else _split(train, seed)
    both = train if validation is None else _joined(train, validation)
    scores: dict[float, float] = {}
    model = _Model(fit_on)
    for decay in sorted(grid, reverse=True):  # from stiff to loose: each start is near its end
        predicted = model.fit(decay).predict(choose_on)
        wanted = choose_on.labels.cpu().numpy()
        scores[decay] = mean_hit((predicted == wanted).astype(np.float64), wanted, by_class)
    best = min(decay for decay, score in scores.items() if score == max(scores.values()))
    last = _Model(both)
    predicted = last.fit(best).predict(test)
    hits = (predicted == test.labels.cpu().numpy()).astype(np.float64)
    ordered = {decay: scores[decay] for decay in sorted(scores)}
    return ProbeFit(hits, best, ordered, model.unconverged + last.unconverged)


class _Model:
    """A logistic regression on standardised features, fitted again from where it was."""

    def __init__(self, data: Labelled) -> None:
        from sklearn.linear_model import LogisticRegression

        rows, self.labels = data.arrays()
        self.centre, self.scale = rows.mean(0), rows.std(0)
        self.scale[self.scale == 0] = 1.0
        self.rows = self._standard(rows)
        self.model: Any = LogisticRegression(max_iter=_MOST_STEPS, warm_start=True)
        self.unconverged = 0

    def fit(self, decay: float) -> _Model:
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ConvergenceWarning)
            self.model.set_params(C=1 / decay).fit(self.rows, self.labels)
        self.unconverged += any(one.category is ConvergenceWarning for one in told)
        return self

    def predict(self, data: Labelled) -> NDArray[np.int64]:
        classes: NDArray[np.int64] = self.model.predict(self._standard(data.arrays()[0]))
        return classes

    def _standard(self, rows: Values) -> Values:
        standard: Values = (rows - self.centre) / self.scale
        return standard


def mean_hit(hits: Values, labels: NDArray[np.int64], by_class: bool) -> float:
    """Return the mean of hits, over images or over the classes that have any."""
    if not by_class:
        return float(hits.mean())
    sizes = np.bincount(labels)
    present = sizes > 0
    return float((np.bincount(labels, hits)[present] / sizes[present]).mean())


def held_out(count: int, seed: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " h"]]:
    """Return the rows that are trained on, and the fifth of ``count`` that is held out."""
    order = random_source(seed, 4).permutation(count)
    held = max(1, int(VALIDATION_SHARE * count))
    kept, out = (np.sort(rows).astype(np.int64) for rows in (order[held:], order[:held]))
    return torch.from_numpy(kept), torch.from_numpy(out)


def _split(data: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Hold out a fifth at random."""
    parts = held_out(len(data.features), seed)
    first, second = (Labelled(data.features[rows], data.labels[rows]) for rows in parts)
    if len(np.unique(first.labels.numpy())) < 2:
        raise UserError("a linear probe needs images of at least two classes: give more of them")
    return first, second


def _joined(a: Labelled, b: Labelled) -> Labelled:
    return Labelled(torch.cat([a.features, b.features]), torch.cat([a.labels, b.labels]))


def _check(
    train: Labelled, validation: Labelled | None, test: Labelled, grid: Sequence[float]
) -> None:
    """Check that the splits go together."""
    splits = {"train": train, "validation": validation, "test": test}
    given = {name: split for name, split in splits.items() if split is not None}
    require_features(**{f"{name} features": split.features for name, split in given.items()})
    for name, split in given.items():
        top = int(split.labels.max()) + 1 if split.labels.numel() else 1
        require_labels(f"{name} labels", split.labels, len(split.features), max(top, 1))
    if len(train.labels.unique()) < 2:
        raise UserError("a linear probe needs training images of at least two classes")
    if not grid or min(grid) <= 0:
        raise UserError("weight decays are positive numbers, and at least one is needed")
