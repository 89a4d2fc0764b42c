"""The gap of every class and of every generator by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from gmail_align.gap.config import GapConfig
from gmail_align.gap.feature_sets import FeatureSet, class_numbers, sample_rows
from gmail_align.metrics.bootstrap import bootstrap_mean
from gmail_align.metrics.class_gap import nearest_is_of_class
from gmail_align.metrics.distances import cmmd_influence, distance_estimate
from gmail_align.metrics.diversity import NEIGHBOURS, diversity
from gmail_align.metrics.pair_gap import gap_metrics
from gmail_align.metrics.ranks import unit_rows
from gmail_align.results import estimate_table

_SHOWN = ("paired_cosine", "margin", "gen_to_real_r1", "probe_auc", "centroid_distance")
_SHOWN_UNPAIRED = ("probe_auc", "centroid_distance")


def measure_groups(
    real: FeatureSet, generated: FeatureSet, *, paired: bool, config: GapConfig, seed: int
) -> dict[str, dict[str, Any]]:
    """Measure each class against its real images, and each generator against all of them.

    Args:
        real: Real images.
        generated: Generated images.
        paired: Row i of both is a pair; a group's pairs are then measured.
        config: How many images a group needs, how many groups are measured.
        seed: Of the bootstrap.

    Returns:
        ``classes`` and ``generators``: name -> ``real`` and ``generated`` (how many images),
        ``metrics`` (empty where images are too few). A part without labels, or with one generator
        only, is left out.
    """
    measures = {}
    hits = _class_hits(real, generated)
    for what in ("classes", "generators"):
        names = sorted(set(getattr(generated, what) or ()))
        if not names or (what == "generators" and len(names) < 2):
            continue
        if what == "classes" and not paired and real.classes is None:
            continue
        measures[what] = {
            name: _measure(real, generated, (what, name), hits, paired, config, seed)
            for name in names[: config.max_groups]
        }
    return measures


def _measure(
    real: FeatureSet,
    generated: FeatureSet,
    group: tuple[str, str],
    hits: Float64[Tensor, " m"] | None,
    paired: bool,
    config: GapConfig,
    seed: int,
) -> dict[str, Any]:
    made = generated.rows_of(*group)
    seen = made if paired else _real_rows(real, group)
    measured: dict[str, Any] = {"real": len(seen), "generated": len(made), "metrics": {}}
    count = min(len(seen), len(made))
    if count < config.least_in_group:
        return measured
    first = seen[sample_rows(len(seen), count, seed, f"real {group[1]}")]
    second = made[sample_rows(len(made), count, seed, f"generated {group[1]}")]
    both = real.features[first], generated.features[second]
    metrics = gap_metrics(*both, resamples=config.resamples, seed=seed)
    kept = {name: metrics[name] for name in (_SHOWN if paired else _SHOWN_UNPAIRED)}
    owner = np.arange(count) if paired else None
    kept["cmmd"] = distance_estimate(cmmd_influence(*both), owner)
    if count > NEIGHBOURS:
        rows = [unit_rows(one) for one in both]
        kept |= diversity(*rows, resamples=config.resamples, seed=seed)
    if hits is not None:
        own = hits[made].numpy()
        kept["class_r1"] = bootstrap_mean(own, resamples=config.resamples, seed=seed)
    measured["metrics"] = estimate_table(kept)
    return measured


def _real_rows(real: FeatureSet, group: tuple[str, str]) -> Int[Tensor, " k"]:
    """Return the real rows that a group is held against: its class's, or all for a generator."""
    return real.rows_of(*group) if group[0] == "classes" else torch.arange(len(real))


def _class_hits(real: FeatureSet, generated: FeatureSet) -> Float64[Tensor, " m"] | None:
    """Return whether each generated image's nearest real image is of its class."""
    numbered = class_numbers(real, generated)
    if numbered is None:
        return None
    rows = unit_rows(generated.features), unit_rows(real.features)
    return nearest_is_of_class(*rows, numbered[1], numbered[0])
