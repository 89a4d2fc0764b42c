"""Precision, recall, density and coverage of generated images by k nearest neighbours.

Precision and recall are those of Kynkaanniemi et al. (2019, "Improved Precision and Recall
Metric"), density and coverage those of Naeem et al. (2020, "Reliable Fidelity and Diversity
Metrics"). The ball of an image has as its radius the distance to its k-th nearest neighbour of its
own set.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import Estimate, bootstrap_means
from gmail_align.metrics.ranks import full_precision, require_features

NEIGHBOURS = 5
"""The k of Naeem et al."""
_DISTANCES = 1 << 22


def diversity(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    *,
    k: int = NEIGHBOURS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Estimate how good and how varied generated images are.

    Args:
        real: features, as they are: Euclidean distances.
        generated: features of the same encoder.
        k: which neighbour sets the radius of an image's ball.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        ``precision`` (share of generated images in the ball of any real one), ``recall`` (of real
        images in the ball of any generated one), ``density`` (real balls that a generated image
        lies in, over k; it may exceed 1) and ``coverage`` (share of real images whose ball holds
        any generated one). Intervals resample images, with all balls held fixed.

    Raises:
        UserError: features cannot be compared, or a set does not have more than k images.
    """
    require_features(real=real, generated=generated)
    if min(len(real), len(generated)) <= k:
        raise UserError(
            f"diversity needs more than {k} images on each side, not {len(real)} and "
            f"{len(generated)}"
        )
    in_real = torch.zeros(len(generated), dtype=torch.float64, device=real.device)
    in_generated = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    with full_precision(real.device):
        rows, others = real.double(), generated.double()
        of_real, of_generated = _radii(rows, k), _radii(others, k)
        block = max(1, _DISTANCES // len(others))
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            apart = torch.cdist(rows[part], others)
            inside = apart < of_real[part, None]
            in_real += inside.sum(0)
            covered[part] = inside.any(1)
            in_generated[part] = (apart < of_generated[None]).any(1)
    made = {"precision": (in_real > 0).double(), "density": in_real / k}
    seen = {"recall": in_generated.double(), "coverage": covered.double()}
    means: dict[str, Estimate] = {}
    for columns in (made, seen):
        values = {name: column.cpu().numpy() for name, column in columns.items()}
        means |= bootstrap_means(values, resamples=resamples, seed=seed)
    return {name: means[name] for name in ("precision", "recall", "density", "coverage")}


def _radii(rows: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """Return each row's distance to its k-th nearest other row."""
    block = max(1, _DISTANCES // len(rows))
    return torch.cat(
        [torch.cdist(some, rows).kthvalue(k + 1, dim=1).values for some in rows.split(block)]
    )
