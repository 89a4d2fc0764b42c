"""What training images and their labels go through when a classifier is fine-tuned.

Every draw comes from torch's generator, which the training loop sets at each step.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import affine_grid, grid_sample, one_hot

_RATIO: Final = math.log(4 / 3)
"""Logarithm of the most that a crop is stretched, either way."""


def random_crops(pixels: Float[Tensor, "b 3 s s"], least: float) -> Float[Tensor, "b 3 s s"]:
    """Cut a random part out of every image and scale it up; mirror half of them.

    Args:
        pixels: Images, normalised.
        least: Smallest share of the area that is kept.
    """
    count = len(pixels)
    area = torch.empty(count).uniform_(least, 1)
    stretch = torch.empty(count).uniform_(-_RATIO, _RATIO).exp()
    width, height = ((area * by).sqrt().clamp(max=1) for by in (stretch, 1 / stretch))
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = width * torch.randint(2, (count,)).mul(2).sub(1)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * torch.empty(count).uniform_(-1, 1)
    theta[:, 1, 2] = (1 - height) * torch.empty(count).uniform_(-1, 1)
    grid = affine_grid(theta, list(pixels.shape), align_corners=False).to(pixels.device)
    return grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def smoothed(labels: Int[Tensor, " b"], classes: int, smoothing: float) -> Float[Tensor, "b c"]:
    """Return each label as a distribution: ``smoothing`` of it is divided by all classes."""
    return one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def mixed(
    pixels: Float[Tensor, "b 3 s s"], targets: Float[Tensor, "b c"], mixup: float, cutmix: float
) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b c"]]:
    """Mix every image with one other of its batch, and their labels in the same proportion.

    Mixup (Zhang et al. 2018) adds the two; CutMix (Yun et al. 2019) pastes a rectangle of the
    other. With both, a coin is tossed.

    Args:
        pixels: Images.
        targets: Their labels as distributions.
        mixup: Both parameters of the beta distribution; 0 for none.
        cutmix: The same of CutMix.
    """
    if mixup == cutmix == 0 or len(pixels) < 2:
        return pixels, targets
    pasted = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    alpha = cutmix if pasted else mixup
    share = float(Beta(alpha, alpha).sample())
    others = pixels.flip(0)
    if pasted:
        rows, columns = _rectangle(pixels.shape[-1], 1 - share)
        both = pixels.clone()
        both[:, :, rows, columns] = others[:, :, rows, columns]
        cut = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - cut / pixels.shape[-1] ** 2
    else:
        both = share * pixels + (1 - share) * others
    return both, share * targets + (1 - share) * targets.flip(0)


def _rectangle(side: int, area: float) -> tuple[slice, slice]:
    """Draw the rows and columns of a rectangle of a share of the image, cut off at its edges."""
    half = side * math.sqrt(area) / 2
    edges = []
    for _ in range(2):
        centre = float(torch.rand(())) * side
        edges.append(slice(max(0, round(centre - half)), min(side, round(centre + half))))
    return edges[0], edges[1]
