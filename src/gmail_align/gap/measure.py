"""The gap between two sets of features, paired or not, as plain numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmail_align.gap.advice import advise
from gmail_align.gap.config import GapConfig
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.metrics.gap import cmmd, frechet_distance, gap_metrics
from gmail_align.runtime import stable_seed

UNPAIRED = ("unpaired_cosine", "probe_auc", "centroid_distance", "norm_ratio")
"""Metrics of pairs that keep their meaning when rows are matched at random."""
_NO_PAIRS = "it needs to know which generated image belongs to which real one: give pairs"


def paired_gap(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "n d"],
    *,
    groups: Int[Tensor, " n"] | None = None,
    config: GapConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the gap of pairs: row i of both belongs to one caption.

    Args:
        real: Features of real images.
        generated: Features of generated images.
        groups: One label a pair; pairs of one real image have the same label.
        config: How many pairs are looked at.
        seed: Of the sample of pairs, the probe's folds and the bootstrap.

    Returns:
        ``metrics`` (name -> ``value``, ``low``, ``high``, ``n``; the two distances have no
        interval), ``n``, ``unavailable`` (name -> why) and ``advice`` (``verdict``, ``sentence``).

    Raises:
        UserError: features are not finite, do not pair up, or are fewer than two.
        MissingExtraError: scikit-learn is not installed.
    """
    config = config or GapConfig()
    if len(real) == len(generated):
        rows = sample_rows(len(real), config.max_pairs, seed, "pairs")
        real, generated = real[rows], generated[rows]
        groups = None if groups is None else groups[rows]
    found = gap_metrics(real, generated, groups=groups, resamples=config.resamples, seed=seed)
    return _report(found, real, generated, {})


def unpaired_gap(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    *,
    config: GapConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the gap of two sets that are not paired, on equally many rows of each.

    Arguments, result and errors are those of :func:`paired_gap`.
    """
    config = config or GapConfig()
    count = min(len(real), len(generated), config.max_pairs)
    real = real[sample_rows(len(real), count, seed, "real")]
    generated = generated[sample_rows(len(generated), count, seed, "generated")]
    found = gap_metrics(real, generated, resamples=config.resamples, seed=seed)
    unavailable = {name: _NO_PAIRS for name in found if name not in UNPAIRED}
    return _report({name: found[name] for name in UNPAIRED}, real, generated, unavailable)


def _report(
    found: dict[str, Estimate],
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "n d"],
    unavailable: dict[str, str],
) -> dict[str, Any]:
    """Add the two distances between sets and the advice."""
    count = len(real)
    bare = {"cmmd": cmmd(real, generated)}
    bare["frechet_distance"] = frechet_distance(real, generated)
    metrics: dict[str, Any] = {name: _plain(estimate) for name, estimate in found.items()}
    metrics |= {
        name: {"value": value, "low": None, "high": None, "n": count}
        for name, value in bare.items()
    }
    verdict, sentence = advise({name: estimate.value for name, estimate in found.items()})
    return {
        "metrics": metrics,
        "n": count,
        "unavailable": unavailable,
        "advice": {"verdict": verdict.value, "sentence": sentence},
    }


def _plain(estimate: Estimate) -> dict[str, float | int | None]:
    """Return an estimate as JSON values; an undefined bound is null."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in estimate.to_dict().items()
    }


def sample_rows(count: int, wanted: int, seed: int, what: str) -> Int[Tensor, " k"]:
    """Draw at most ``wanted`` of ``count`` rows without replacement, in their order.

    All rows come where there are no more; ``what`` keeps the draws of one seed apart.
    """
    if count <= wanted:
        return torch.arange(count)
    rng = np.random.default_rng(stable_seed(seed, "gap", what))
    return torch.from_numpy(np.sort(rng.choice(count, wanted, replace=False)))
