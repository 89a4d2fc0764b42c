"""The gap between the real and the generated modality, measured on paired features.

Row i of `real` and row i of `generated` are a pair (same caption). Cosines follow the paper's
Tab. 14; `unpaired_cosine` is the control that it lacks: a feature space in which everything
is alike has a high paired cosine too, and only the margin between the two says more.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from gmail_align.metrics.bootstrap import (
    Estimate,
    Values,
    bootstrap_mean,
    bootstrap_replicates,
    cluster_index,
    interval,
)
from gmail_align.metrics.ranks import label_ranks, recall_at, require_pairs, unit_rows
from gmail_align.metrics.separability import probe_auc
from gmail_align.metrics.statistics import Column, mean_column


def gen_to_real_recall(
    generated: Float[Tensor, "n d"],
    real: Float[Tensor, "n d"],
    ks: tuple[int, ...] = (1, 5),
    *,
    groups: Int[Tensor, " n"] | None = None,
) -> dict[int, Float64[Tensor, " n"]]:
    """Return, for each k, each generated image's probability of finding its real image.

    The gallery is all n real images, so values of sets of different size do not compare.
    Ties are broken at random.

    Args:
        generated: queries.
        real: gallery; row i is the match of query i.
        ks: cut-offs; one beyond n is clipped to n.
        groups: pairs with equal labels (same caption, or same image twice) match one another.

    Raises:
        UserError: features or groups do not pair up.
    """
    require_pairs(real, generated, groups=groups)
    labels = (torch.arange(len(real)) if groups is None else groups).to(real.device)
    ranks = label_ranks(generated, real, labels, labels)
    return {k: recall_at(ranks, k) for k in ks}


def gap_metrics(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "n d"],
    *,
    groups: Int[Tensor, " n"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Measure the gap: cosines, generated-to-real recall, probe AUC, centroids and norms.

    Intervals resample pairs, or groups of pairs where ``groups`` is given.

    Args:
        real: features of real images.
        generated: features of the generated images, in the same order.
        groups: one label a pair; equal labels share a caption or an image.
        resamples: bootstrap resamples.
        seed: of the bootstrap and of the probe's folds.

    Returns:
        ``paired_cosine`` (mean cosine of the pairs: the paper's cosine similarity, Tab. 14),
        ``unpaired_cosine`` (of real i and generated j over all i != j), ``margin`` (their
        difference), ``gen_to_real_r1``, ``gen_to_real_r5``, ``probe_auc`` (0.5:
        indistinguishable), ``centroid_distance`` (of the means of normalised features: the
        modality gap of Liang et al. 2022, "Mind the Gap", section 4), ``norm_ratio`` (mean length
        of generated features over that of real ones, before normalising).

    Raises:
        UserError: features are not finite, do not pair up, or hold fewer than two pairs.
    """
    require_pairs(real, generated, groups=groups, least=2)
    owner = cluster_index(None if groups is None else groups.cpu().numpy(), len(real))
    recalls = gen_to_real_recall(generated, real, groups=groups)
    distances = {
        f"gen_to_real_r{k}": bootstrap_mean(
            hits.cpu().numpy(), clusters=owner, resamples=resamples, seed=seed
        )
        for k, hits in recalls.items()
    }
    probe = probe_auc(real, generated, groups=groups, resamples=resamples, seed=seed)
    table = _moment_estimates(real, generated, owner, resamples=resamples, seed=seed)
    apart = {name: table.pop(name) for name in ("centroid_distance", "norm_ratio")}
    return table | distances | {"probe_auc": probe} | apart


def pair_columns(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "n d"], groups: Int[Tensor, " n"]
) -> dict[str, Column]:
    """Return what each group of pairs adds to the measures of :func:`gap_metrics` that are means.

    Args:
        real: features of real images.
        generated: features of the generated images, in the same order.
        groups: 0, 1, ..., one label a pair; equal labels share an image.

    Raises:
        UserError: features or groups do not pair up.
    """
    owner, cosines = groups.numpy(), (unit_rows(real) * unit_rows(generated)).sum(1)
    recalls = gen_to_real_recall(generated, real, groups=groups)
    means = {"paired_cosine": cosines, **{f"gen_to_real_r{k}": v for k, v in recalls.items()}}
    sizes = np.bincount(owner)
    return {
        name: mean_column(np.bincount(owner, values.double().numpy()), sizes)
        for name, values in means.items()
    }


def _moment_estimates(
    real: Tensor, generated: Tensor, owner: NDArray[np.int64], *, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Estimate all statistics that are functions of sums, over shared resamples.

    The squared distance of two centroids is biased upwards by noise, once in the value and
    twice in a resample; its replicates are centred on the value before the root is taken.
    """
    moments, count = _Moments(real, generated), int(owner.max()) + 1
    value = moments(np.ones((1, len(real))))[0]
    replicates = bootstrap_replicates(
        count, lambda weights: moments(weights[:, owner]), resamples=resamples, seed=seed
    )
    replicates[:, 3] -= replicates[:, 3].mean() - value[3]
    value[3], replicates[:, 3] = np.sqrt(value[3]), np.sqrt(replicates[:, 3].clip(min=0))
    names = ("paired_cosine", "unpaired_cosine", "margin", "centroid_distance", "norm_ratio")
    return {name: interval(value[at], replicates[:, at], count) for at, name in enumerate(names)}


class _Moments:
    """Statistics of a paired set as functions of pair weights (resamples, n), in float64."""

    def __init__(self, real: Tensor, generated: Tensor) -> None:
        self.real = unit_rows(real).double().cpu().numpy()
        self.generated = unit_rows(generated).double().cpu().numpy()
        self.cosines: Values = (self.real * self.generated).sum(1)
        self.real_norms = real.double().norm(dim=1).cpu().numpy()
        self.generated_norms = generated.double().norm(dim=1).cpu().numpy()

    def __call__(self, weights: Values) -> Values:
        """Return (resamples, 5): paired, unpaired, margin, squared distance, norm ratio."""
        paired, unpaired = self.paired(weights), self.unpaired(weights)
        columns = (paired, unpaired, paired - unpaired)
        apart = (self.squared_distance(weights), self.norm_ratio(weights))
        return np.stack(columns + apart, axis=1)

    def paired(self, weights: Values) -> Values:
        means: Values = weights @ self.cosines / weights.sum(1)
        return means

    def unpaired(self, weights: Values) -> Values:
        """Sum of all couples minus the pairs themselves, over the weight of the couples left."""
        couples = ((weights @ self.real) * (weights @ self.generated)).sum(1)
        squares = weights**2
        left = weights.sum(1) ** 2 - squares.sum(1)
        sums = couples - squares @ self.cosines
        means: Values = np.where(left > 0, sums, np.nan) / np.where(left > 0, left, 1)
        return means

    def squared_distance(self, weights: Values) -> Values:
        between = weights @ (self.real - self.generated) / weights.sum(1, keepdims=True)
        squared: Values = (between**2).sum(1)
        return squared

    def norm_ratio(self, weights: Values) -> Values:
        ratios: Values = (weights @ self.generated_norms) / (weights @ self.real_norms)
        return ratios
