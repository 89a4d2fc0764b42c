"""The gap between sets that share classes instead of pairs, and how well either side is understood.

Where no generated image belongs to one real image, its class stands for the caption: generated
images of cats are held against real cats. The same measures between real images say how much of
that a perfect generator would reach.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import Estimate, bootstrap_means
from gmail_align.metrics.ranks import (
    TIE,
    full_precision,
    label_ranks,
    recall_at,
    require_features,
    require_labels,
    unit_rows,
)

_SCORES = 1 << 24


def class_gap(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    real_classes: Int[Tensor, " n"],
    generated_classes: Int[Tensor, " m"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Hold generated images against real ones of their class.

    Intervals resample the images that are compared, with the real gallery held fixed. Generated
    images of a class that has no real image, and real ones that are alone in theirs, are left out.

    Returns:
        ``class_cosine`` (mean cosine to the real images of its class), ``class_margin`` (minus that
        to the other classes'), ``class_r1`` (its nearest real image is of its class), and the same
        of real images against the other real ones as ``real_class_cosine``, ...

    Raises:
        UserError: features or labels do not fit, or the sides share fewer than two classes.
    """
    require_features(real=real, generated=generated)
    top = int(max(real_classes.max(), generated_classes.max())) + 1
    require_labels("real classes", real_classes, len(real), top)
    require_labels("generated classes", generated_classes, len(generated), top)
    sizes = torch.bincount(real_classes, minlength=top)
    made = torch.bincount(generated_classes, minlength=top)
    if int(((sizes > 0) & (made > 0)).sum()) < 2:
        raise UserError("real and generated images share fewer than two classes: check their names")
    gallery = unit_rows(real)
    told: dict[str, Estimate] = {}
    sides = (("", generated, generated_classes, False), ("real_", real, real_classes, True))
    for prefix, rows, labels, itself in sides:
        kept = sizes[labels] > int(itself)
        queries = unit_rows(rows)
        cosines = _class_cosines(queries, gallery, labels, real_classes, itself)
        hits = nearest_is_of_class(queries, gallery, labels, real_classes, itself=itself)
        columns = {
            f"{prefix}class_cosine": cosines[0],
            f"{prefix}class_margin": cosines[0] - cosines[1],
            f"{prefix}class_r1": hits,
        }
        arrays = {name: column[kept].cpu().numpy() for name, column in columns.items()}
        told |= bootstrap_means(arrays, resamples=resamples, seed=seed)
    return told


def nearest_is_of_class(
    queries: Float32[Tensor, "q d"],
    gallery: Float32[Tensor, "n d"],
    query_classes: Int[Tensor, " q"],
    gallery_classes: Int[Tensor, " n"],
    *,
    itself: bool = False,
) -> Float64[Tensor, " q"]:
    """Return each query's probability that its nearest gallery row is of its class.

    Rows have length one; ties are broken at random. With ``itself``, query i is gallery row i and
    is passed over.
    """
    parts, block = [], max(1, _SCORES // len(gallery))
    with full_precision(queries.device):
        for start in range(0, len(queries), block):
            scores = queries[start : start + block] @ gallery.T
            if itself:
                rows = torch.arange(len(scores), device=scores.device)
                scores[rows, start + rows] = -torch.inf
            near = scores >= scores.amax(1, keepdim=True) - TIE
            same = query_classes[start : start + block, None] == gallery_classes[None]
            parts.append((near & same).sum(1).double() / near.sum(1))
    return torch.cat(parts)


def text_recall(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "t d"],
    image_text: Int[Tensor, " n"],
    *,
    owner: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return how often an image's nearest text is its own: R@1, or accuracy if texts are classes.

    Ties are broken at random.

    Args:
        images: features.
        texts: features of the different texts.
        image_text: row in ``texts`` of each image's own.
        owner: one group an image; images of a group are resampled together.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        UserError: features cannot be compared, or a label names no text.
    """
    require_features(images=images, texts=texts)
    require_labels("texts of images", image_text, len(images), len(texts))
    places = torch.arange(len(texts), device=images.device)
    hits = recall_at(label_ranks(images, texts, image_text.to(images.device), places), 1)
    columns = {"r1": hits.cpu().numpy()}
    return bootstrap_means(columns, clusters=owner, resamples=resamples, seed=seed)["r1"]


def _class_cosines(
    queries: Tensor, gallery: Tensor, labels: Tensor, classes: Tensor, itself: bool
) -> tuple[Float64[Tensor, " q"], Float64[Tensor, " q"]]:
    """Return each query's mean cosine to its class's real images and to those of other classes."""
    count = int(max(labels.max(), classes.max())) + 1
    sizes = torch.bincount(classes, minlength=count).double()
    sums = torch.zeros(count, gallery.shape[1], dtype=torch.float64, device=gallery.device)
    sums.index_add_(0, classes, gallery.double())
    rows = queries.double()
    own, all_of = (rows * sums[labels]).sum(1), rows @ sums.sum(0)
    others = (all_of - own) / (len(gallery) - sizes[labels])
    taken = (rows * rows).sum(1) if itself else torch.zeros_like(own)
    return (own - taken) / (sizes[labels] - int(itself)), others
