"""Scores of generated images: blankness, near-duplicates, copies of photos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.data.hashes import HashArray, near_pairs


@dataclass(frozen=True)
class Match:
    """The image that another one resembles, and how much."""

    row: int
    bits: int
    """Bits in which the perceptual hashes differ."""
    cosine: float | None
    """Cosine of the features; None without features."""


def spread(pixels: npt.NDArray[np.uint8]) -> float:
    """Return the standard deviation of an image's grey values, from 0 (blank) to 127.5."""
    return float(pixels.astype(np.float32).mean(axis=2).std())


def duplicates(
    hashes: HashArray, bits: int, features: Float[Tensor, "n d"] | None, cosine: float
) -> dict[int, Match]:
    """Find images that nearly equal one that stands before them.

    A group of near-duplicates keeps its first image: a row is compared with rows that are kept.

    Args:
        hashes: Perceptual hashes, shape (n, 16).
        bits: Most bits in which near-duplicates differ.
        features: Features of the same rows; None compares hashes alone.
        cosine: Least cosine of near-duplicates.

    Returns:
        Row -> the first kept row that it resembles.
    """
    matches: dict[int, Match] = {}
    near = (pair for pair in near_pairs(hashes, hashes, bits) if pair[0] < pair[1])
    for first, second, differing in sorted(near):
        if first in matches or second in matches:
            continue
        alike = _cosine(features, first, features, second)
        if alike is None or alike >= cosine:
            matches[second] = Match(first, differing, alike)
    return matches


def copies(
    hashes: HashArray,
    photos: HashArray,
    bits: int,
    features: tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]] | None,
    cosine: float,
) -> dict[int, Match]:
    """Find images that are copies of photos, and the nearest photo of each.

    Args:
        hashes: Perceptual hashes of the images, shape (n, 16).
        photos: Perceptual hashes of the photos, shape (m, 16).
        bits: Most bits in which a copy differs.
        features: Features of both; None compares hashes alone.
        cosine: Least cosine of a copy.
    """
    matches: dict[int, Match] = {}
    for row, photo, differing in near_pairs(hashes, photos, bits):
        alike = _cosine(features and features[0], row, features and features[1], photo)
        best = matches.get(row)
        if (alike is None or alike >= cosine) and (best is None or differing < best.bits):
            matches[row] = Match(photo, differing, alike)
    return matches


def _cosine(first: Tensor | None, row: int, second: Tensor | None, other: int) -> float | None:
    if first is None or second is None:
        return None
    rows = first[row].float(), second[other].float()
    return float(torch.nn.functional.cosine_similarity(*rows, dim=0))
