"""Zero-shot classification by class names: accuracy and the mean over classes, tie-safe."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import (
    Estimate,
    Values,
    bootstrap_kinds,
    bootstrap_mean,
    interval,
)
from gmail_align.metrics.ranks import (
    label_ranks,
    recall_at,
    require_features,
    require_labels,
    unit_rows,
)
from gmail_align.metrics.statistics import Column, mean_column


def class_weights(
    features: Float[Tensor, "classes templates d"],
) -> Float32[Tensor, "classes d"]:
    """Ensemble the prompts of each class: normalise, mean over templates, normalise.

    Source: CLIP (Radford et al. 2021), Prompt_Engineering_for_ImageNet.ipynb.

    Raises:
        UserError: features are not three-dimensional and finite.
    """
    if features.ndim != 3:
        raise UserError(f"prompt features have {features.ndim} axes; (classes, templates, dim)")
    require_features(prompts=features.flatten(0, 1))
    return unit_rows(unit_rows(features).mean(1))


def zeroshot_hits(
    image_features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    class_features: Float[Tensor, "classes d"],
) -> Float[Tensor, " n"]:
    """Return each image's probability of being classified right, ties broken at random.

    Two classes with equal features (a name that occurs twice) each get half.

    Raises:
        UserError: features cannot be compared, or a label names no class.
    """
    require_features(image_features=image_features, class_features=class_features)
    require_labels("labels", labels, len(image_features), len(class_features))
    classes = torch.arange(len(class_features), device=image_features.device)
    labels = labels.to(image_features.device)
    return recall_at(label_ranks(image_features, class_features, labels, classes), 1)


def accuracy_estimates(
    hits: Values, labels: NDArray[np.int64], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Return ``accuracy`` (top 1) and ``class_mean`` (mean recall of the classes), in 0..1.

    ``class_mean`` is what Aircraft, Pets and Caltech101 report. Classes without an image, in the
    set or in a resample, are left out of it, as scikit-learn's balanced accuracy does.

    Args:
        hits: (n,) probability that each image is classified right.
        labels: (n,) class of each image.
        resamples: bootstrap resamples over images.
        seed: of the bootstrap.
    """
    return {
        "accuracy": bootstrap_mean(hits, resamples=resamples, seed=seed),
        "class_mean": _class_mean(hits, labels, resamples=resamples, seed=seed),
    }


def accuracy_columns(hits: Values, labels: NDArray[np.int64]) -> dict[str, Column]:
    """Return what every image adds to each accuracy: to compare results image by image.

    In ``class_mean`` an image weighs one over the size of its class, the same in every resample.
    """
    weights = 1 / np.bincount(labels)[labels]
    return {
        "accuracy": mean_column(hits),
        "class_mean": mean_column(hits * weights, weights),
    }


def _class_mean(hits: Values, labels: NDArray[np.int64], *, resamples: int, seed: int) -> Estimate:
    """Estimate the mean over classes of their mean hit; images of one class and hit are alike."""
    cells = np.column_stack([labels.astype(np.float64), hits])
    kinds, kind = np.unique(cells, axis=0, return_inverse=True)
    starts = np.unique(kinds[:, 0], return_index=True)[1]

    def means(weights: Values) -> Values:
        sizes = np.add.reduceat(weights, starts, axis=1)
        right = np.add.reduceat(weights * kinds[:, 1], starts, axis=1)
        present = sizes > 0
        recalls = np.where(present, right / np.maximum(sizes, 1), 0).sum(1)
        over_classes: Values = recalls / present.sum(1)
        return over_classes

    replicates = bootstrap_kinds(kind.reshape(-1), means, resamples=resamples, seed=seed)
    whole = np.bincount(kind.reshape(-1))[None].astype(np.float64)
    return interval(float(means(whole)[0]), replicates, len(hits))
