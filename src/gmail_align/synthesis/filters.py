"""Scores of generated images: caption match, blankness, near-duplicates, copies of photos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.data.hashes import HashArray, near_pairs

CLIPSCORE_WEIGHT = 2.5


@dataclass(frozen=True)
class Match:
    """The image that another one resembles, and how much."""

    row: int
    bits: int
    """Bits in which the perceptual hashes differ."""
    cosine: float | None
    """Cosine of the features; None without features."""


def clip_score(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return how well each image fits its caption: 2.5 max(cos, 0) (CLIPScore, Hessel et al. 2021).

    Args:
        images: Features, of any length.
        texts: Features of the captions, in the same order.
    """
    return CLIPSCORE_WEIGHT * cosines(images, texts).clamp_min(0)


def cosines(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return the cosine of each row of the one with the same row of the other, in float32."""
    return torch.nn.functional.cosine_similarity(first.float(), second.float(), dim=1)


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
    found: dict[int, Match] = {}
    for first, second, differing in sorted(_near_rows(hashes, bits)):
        if first in found or second in found:
            continue
        alike = _cosine(features, first, features, second)
        if alike is None or alike >= cosine:
            found[second] = Match(first, differing, alike)
    return found


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
    found: dict[int, Match] = {}
    for row, photo, differing in near_pairs(hashes, photos, bits):
        alike = _cosine(features and features[0], row, features and features[1], photo)
        best = found.get(row)
        if (alike is None or alike >= cosine) and (best is None or differing < best.bits):
            found[row] = Match(photo, differing, alike)
    return found


def _cosine(first: Tensor | None, row: int, second: Tensor | None, other: int) -> float | None:
    if first is None or second is None:
        return None
    return float(cosines(first[row : row + 1], second[other : other + 1]))


def _near_rows(hashes: HashArray, bits: int) -> Iterator[tuple[int, int, int]]:
    """Yield (earlier row, later row, bits that differ) of all pairs within ``bits``."""
    for left, right, differing in near_pairs(hashes, hashes, bits):
        if left < right:
            yield left, right, differing
