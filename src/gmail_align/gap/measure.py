"""The gap between two sets of features, paired or not, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.gap.advice import THRESHOLDS, advise
from gmail_align.gap.config import GapConfig
from gmail_align.gap.feature_sets import FeatureSet, class_numbers, sampled
from gmail_align.gap.groups import measure_groups
from gmail_align.metrics.bootstrap import (
    Estimate,
    bootstrap_mean,
    bootstrap_means,
    cluster_index,
)
from gmail_align.metrics.class_gap import class_gap, text_recall
from gmail_align.metrics.distances import (
    cmmd,
    cmmd_influence,
    distance_estimate,
    frechet_distance,
    frechet_influence,
)
from gmail_align.metrics.diversity import NEIGHBOURS, diversity
from gmail_align.metrics.pair_gap import gap_metrics
from gmail_align.metrics.ranks import require_features, require_pairs, unit_rows
from gmail_align.metrics.transfer import caption_transfer, class_transfer
from gmail_align.runtime import random_source

UNPAIRED = ("unpaired_cosine", "probe_auc", "centroid_distance", "norm_ratio")
"""Metrics of pairs that keep their meaning when rows are matched at random."""
_NO_PAIRS = "it needs to know which generated image belongs to which real one: give pairs"
_NO_TEXTS = "its images have no captions"
_NO_CLASSES = "real and generated images share fewer than two classes"


@dataclass(frozen=True)
class Texts:
    """Text features and the row among them of each image's own text, a caption or a class.

    A side whose images have no texts is None.
    """

    features: Float[Tensor, "t d"]
    real: Int[Tensor, " n"] | None
    generated: Int[Tensor, " m"] | None


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        metrics: Name -> estimate.
        unavailable: Name -> why it could not be measured.
        details: ``floor`` (distance -> the same distance between two random halves of the real
            images), ``groups`` (``classes`` and ``generators`` by name) and ``advice``
            (``verdict``, ``sentence``, ``thresholds``).
    """

    metrics: Mapping[str, Estimate]
    unavailable: Mapping[str, str]
    details: Mapping[str, Any]


def measure(
    real: FeatureSet,
    generated: FeatureSet,
    *,
    paired: bool,
    groups: Int[Tensor, " n"] | None = None,
    texts: Texts | None = None,
    config: GapConfig | None = None,
    seed: int = 0,
) -> Measured:
    """Measure the gap; sets that are not paired are cut to equally many images.

    Args:
        real: Real images.
        generated: Generated images.
        paired: Row i of both belongs to one caption.
        groups: One label a pair; pairs of one real image have the same label.
        texts: Their captions, or the names of their classes.
        config: How many images are looked at.
        seed: Of the sample, the probe's folds and the bootstrap.

    Raises:
        UserError: features are not finite, do not fit or pair up, or are fewer than two.
    """
    config = config or GapConfig()
    check = require_pairs if paired else require_features
    check(real=real.features, generated=generated.features)
    _require_content({"real": real, "generated": generated})
    rows = sampled(len(real), len(generated), paired, config.max_pairs, seed)
    real, generated = real.take(rows[0]), generated.take(rows[1])
    if len(real) < 2:
        what = "pairs" if paired else "images of a kind"
        raise UserError(f"too few {what}: {len(real)}, and at least 2 are needed")
    groups = None if groups is None else groups[rows[0]]
    if groups is not None and len(groups.unique()) < 2:
        groups = None  # copies of one image are too few for a verdict, but have numbers
    owner = cluster_index(None if groups is None else groups.numpy(), len(real))
    how = {"resamples": config.resamples, "seed": seed}
    estimates = gap_metrics(real.features, generated.features, groups=groups, **how)
    unavailable = {} if paired else {name: _NO_PAIRS for name in estimates if name not in UNPAIRED}
    estimates = {name: one for name, one in estimates.items() if name not in unavailable}
    estimates |= _distances(real, generated, owner if paired else None)
    estimates |= _by_class(real, generated, unavailable, how)
    estimates |= _diversity(real, generated, unavailable, how)
    estimates |= _transfer(real, generated, owner if paired else None, how)
    chance = None
    if texts is not None:
        understood, count = _understood((real, generated), texts, rows, unavailable, how)
        estimates, chance = estimates | understood, 1 / count
    kinds = [_distinct(one.features) for one in (real, generated)]
    shared = len(kinds[0] & kinds[1]) / len(kinds[1])
    distinct = min(map(len, kinds))
    verdict, sentence = advise(estimates, chance, _alike(real.features), distinct, shared)
    details = {
        "floor": _floor(real.features, seed),
        "groups": measure_groups(real, generated, paired=paired, config=config, seed=seed),
        "advice": {"verdict": verdict.value, "sentence": sentence, "thresholds": dict(THRESHOLDS)},
    }
    return Measured(estimates, unavailable, details)


def _distinct(features: Float[Tensor, "n d"]) -> set[bytes]:
    """Return the rows, copies left out; rounding hides what the size of a batch changes."""
    rounded = (unit_rows(features) * 1e4).round().to(torch.int16)
    return {row.tobytes() for row in rounded.cpu().numpy()}


def _alike(features: Float[Tensor, "n d"]) -> float:
    """Return the mean cosine of two different images."""
    rows, count = unit_rows(features).double(), len(features)
    return float((rows.sum(dim=0).square().sum() - count) / max(1, count * (count - 1)))


def _require_content(sets: Mapping[str, FeatureSet]) -> None:
    for name, one in sets.items():
        if not bool(one.features.any()):
            raise UserError(f"the {name} features are all zero: extract them again")


def _distances(
    real: FeatureSet, generated: FeatureSet, owner: np.ndarray | None
) -> dict[str, Estimate]:
    """Estimate the two distances between sets; the Frechet distance of few rows has no interval."""
    estimates = {
        "cmmd": distance_estimate(cmmd_influence(real.features, generated.features), owner)
    }
    frechet = frechet_influence(real.features, generated.features)
    if frechet is None:
        value = frechet_distance(real.features, generated.features)
        return estimates | {"frechet_distance": Estimate(value, math.nan, math.nan, len(real))}
    return estimates | {"frechet_distance": distance_estimate(frechet, owner)}


def _floor(real: Float[Tensor, "n d"], seed: int) -> dict[str, float]:
    """Measure the distances between two random halves of the real images: what chance alone does.

    Halves have half the images, so a distance that falls with n is smaller than this by chance.
    """
    if len(real) < 4:
        return {}
    order = random_source(seed, 3).permutation(len(real))
    half = len(real) // 2
    first, second = (
        real[torch.from_numpy(rows)] for rows in (order[:half], order[half : 2 * half])
    )
    measures = {"cmmd": cmmd, "frechet_distance": frechet_distance}
    return {name: max(0.0, measure(first, second)) for name, measure in measures.items()}


def _by_class(
    real: FeatureSet, generated: FeatureSet, unavailable: dict[str, str], how: dict[str, Any]
) -> dict[str, Estimate]:
    """Hold classes against each other, where both sides have them."""
    numbered = class_numbers(real, generated)
    if numbered is None:
        return {}
    first, second, _ = numbered
    shared = set(first.tolist()) & set(second.tolist())
    if len(shared) < 2:
        unavailable["class_margin"] = _NO_CLASSES
        return {}
    return class_gap(real.features, generated.features, first, second, **how)


def _diversity(
    real: FeatureSet, generated: FeatureSet, unavailable: dict[str, str], how: dict[str, Any]
) -> dict[str, Estimate]:
    """Estimate precision, recall, density and coverage of features of length one."""
    if len(real) <= NEIGHBOURS:
        unavailable["coverage"] = f"it needs more than {NEIGHBOURS} images of each kind"
        return {}
    return diversity(unit_rows(real.features), unit_rows(generated.features), **how)


def _transfer(
    real: FeatureSet, generated: FeatureSet, owner: np.ndarray | None, how: dict[str, Any]
) -> dict[str, Estimate]:
    """Estimate what generated images teach about real ones.

    By classes: accuracy on half the real images of a probe that was trained on as many generated
    ones (``transfer``), and on the other half of the real ones (``transfer_real``). By pairs:
    ``transfer_captions``, retrieval of the real image of a caption and of its generated ones.
    """
    estimates: dict[str, Estimate] = {}
    numbered = class_numbers(real, generated)
    if numbered is not None:
        ours, theirs, _ = numbered
        order = torch.from_numpy(random_source(how["seed"], 5).permutation(len(real)))
        train, test = order[: len(real) // 2], order[len(real) // 2 :]
        test = test[torch.isin(ours[test], ours[train]) & torch.isin(ours[test], theirs[train])]
        if len(test) and min(len(ours[train].unique()), len(theirs[train].unique())) > 1:
            judged = real.features[test], ours[test]
            sides = {"transfer": (generated, theirs), "transfer_real": (real, ours)}
            hits = {
                name: class_transfer(side.features[train], labels[train], *judged).numpy()
                for name, (side, labels) in sides.items()
            }
            estimates |= bootstrap_means(hits, **how)
    if owner is not None:
        first = torch.from_numpy(np.unique(owner, return_index=True)[1])
        captions = torch.from_numpy(owner)
        values = caption_transfer(
            generated.features, captions, real.features[first], captions[first]
        )
        estimates["transfer_captions"] = bootstrap_mean(values.numpy(), **how)
    return estimates


def _understood(
    sets: tuple[FeatureSet, FeatureSet],
    texts: Texts,
    rows: tuple[Tensor, Tensor],
    unavailable: dict[str, str],
    how: dict[str, Any],
) -> tuple[dict[str, Estimate], int]:
    """Estimate how well each set's images are understood by their own texts.

    Returns:
        ``text_recall_real``, ``text_cosine_real`` and the same of generated images; and among how
        many texts an image's own is looked for.
    """
    own_texts = {"real": texts.real, "generated": texts.generated}
    chosen = zip(own_texts.items(), sets, rows, strict=True)
    told = [(name, one, own[at]) for (name, own), one, at in chosen if own is not None]
    unavailable |= {f"text_recall_{n}": _NO_TEXTS for n, own in own_texts.items() if own is None}
    used, places = torch.unique(torch.cat([own for _, _, own in told]), return_inverse=True)
    parts = torch.split(places, [len(own) for _, _, own in told])
    estimates: dict[str, Estimate] = {}
    for (name, one, own), place in zip(told, parts, strict=True):
        estimates[f"text_recall_{name}"] = text_recall(
            one.features, texts.features[used], place, **how
        )
        cosines = (unit_rows(one.features) * unit_rows(texts.features[own])).sum(1)
        estimates[f"text_cosine_{name}"] = bootstrap_mean(cosines.double().numpy(), **how)
    return estimates, len(used)
