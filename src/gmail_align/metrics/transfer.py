"""Transfer: what is learnt from generated images and tested on real ones.

Where images have classes, a logistic regression is trained on generated images and classifies real
ones. Where a caption joins a real image to generated ones, each side looks for its captions in the
other.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from gmail_align.errors import UserError
from gmail_align.metrics.ranks import label_ranks, recall_at, require_features, require_labels

DECAY: Final = 0.1
"""Weight decay of the regression, a training image, in units of the features' mean variance."""
_STEPS: Final = 200
_TOLERANCE: Final = 1e-5


def class_transfer(
    train: Float[Tensor, "n d"],
    train_classes: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_classes: Int[Tensor, " m"],
    *,
    decay: float = DECAY,
) -> Float64[Tensor, " m"]:
    """Train a logistic regression on some features and say which others it classifies right.

    Features are centred by the training images and divided by one number, the root of their mean
    variance. The objective is the mean cross-entropy + decay / 2 * |W|^2; biases are not decayed.
    It is that of scikit-learn's ``LogisticRegression`` with ``C = 1 / (decay n)``.

    Args:
        train: Features that are trained on: those of generated images.
        train_classes: The class of each.
        test: Features of real images.
        test_classes: The class of each.
        decay: Weight decay.

    Returns:
        1 for each test image whose class was right, else 0.

    Raises:
        UserError: features or labels do not fit, or there are fewer than two classes.
    """
    require_features(train=train, test=test)
    top = int(max(train_classes.max(), test_classes.max())) + 1
    require_labels("training classes", train_classes, len(train), top)
    require_labels("test classes", test_classes, len(test), top)
    known, labels = train_classes.unique(return_inverse=True)
    if len(known) < 2:
        raise UserError("transfer needs training images of at least two classes")
    centre = train.mean(0)
    scale = (train - centre).square().mean().sqrt().clamp(min=torch.finfo(train.dtype).tiny)
    weights = _logistic((train - centre) / scale, labels, len(known), decay)
    scores = (test - centre) / scale @ weights[:-1] + weights[-1]
    hits: Tensor = (known[scores.argmax(1)] == test_classes).double()
    return hits


def caption_transfer(
    generated: Float[Tensor, "n d"],
    generated_captions: Int[Tensor, " n"],
    real: Float[Tensor, "m d"],
    real_captions: Int[Tensor, " m"],
) -> Float64[Tensor, " m"]:
    """Look for the caption of each real image among generated ones, and back.

    Args:
        generated: Features of generated images.
        generated_captions: Number of the caption (or group of captions) of each.
        real: Features of real images by the same encoder.
        real_captions: The same of real images.

    Returns:
        For each real image half of whether its nearest generated image has its caption, and half
        of how many of its own generated images have it as the nearest real one. Ties are broken at
        random, in expectation.

    Raises:
        UserError: features or labels do not fit, or a caption is on one side alone.
    """
    there = recall_at(label_ranks(real, generated, real_captions, generated_captions), 1)
    back = recall_at(label_ranks(generated, real, generated_captions, real_captions), 1)
    top = int(max(generated_captions.max(), real_captions.max())) + 1
    empty = torch.zeros(top, dtype=torch.float64, device=back.device)
    sums = empty.index_add(0, generated_captions, back.double())
    sizes = empty.index_add(0, generated_captions, torch.ones_like(back, dtype=torch.float64))
    return (there.double() + (sums / sizes.clamp(min=1))[real_captions]) / 2


def _logistic(
    rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int, decay: float
) -> Float[Tensor, "d_plus_1 classes"]:
    """Fit a multinomial logistic regression; the last row of weights is the biases."""
    weights = torch.zeros(rows.shape[1] + 1, classes, dtype=rows.dtype, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights], max_iter=_STEPS, tolerance_grad=_TOLERANCE, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = cross_entropy(torch.addmm(weights[-1], rows, weights[:-1]), labels)
        total = loss + decay / 2 * weights[:-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(objective)
    return weights.detach()
