"""CLIPScore and RefCLIPScore (Hessel et al., EMNLP 2021), from given features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gmail_align.errors import UserError
from gmail_align.metrics.bootstrap import Values

PROMPT = "A photo depicts "
"""What a caption is put behind before CLIP encodes it."""
WEIGHT = 2.5


@dataclass(frozen=True)
class ClipFeatures:
    """Features of one CLIP model, in the order of the images.

    Attributes:
        images: (n, d).
        captions: captioner -> (n, d), of its captions behind `PROMPT`.
        references: (m, d) of human captions behind the same words; None without RefCLIPScore.
        owner: (m,) the row of each reference's image.
    """

    images: Values
    captions: Mapping[str, Values]
    references: Values | None = None
    owner: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def clip_score(images: Values, captions: Values) -> Values:
    """Return 2.5 max(cos, 0) of each image and its caption, eq. 1.

    Args:
        images: (n, d) features, of any length.
        captions: (n, d) features, row by row of the same images.

    Raises:
        UserError: shapes differ, or a row is zero.
    """
    if images.shape != captions.shape:
        raise UserError(
            f"image features of shape {images.shape} and caption features of shape "
            f"{captions.shape} do not pair row by row"
        )
    cosines: Values = (_unit(images, "image") * _unit(captions, "caption")).sum(axis=1)
    return WEIGHT * np.maximum(cosines, 0)


def ref_clip_score(
    scores: Values, captions: Values, references: Values, owner: NDArray[np.int64]
) -> Values:
    """Return the harmonic mean of CLIPScore and the best cosine with a reference, eq. 2.

    Args:
        scores: (n,) CLIPScore.
        captions: (n, d) features.
        references: (m, d) features of human captions.
        owner: (m,) the row of ``captions`` that each reference belongs to.

    Raises:
        UserError: shapes differ, a row is zero, or a caption has no reference.
    """
    if references.shape[1:] != captions.shape[1:] or len(references) != len(owner):
        raise UserError(
            f"reference features of shape {references.shape} do not fit {len(owner)} references "
            f"and captions of shape {captions.shape}"
        )
    cosines = (_unit(references, "reference") * _unit(captions, "caption")[owner]).sum(axis=1)
    best: Values = np.full(len(captions), -np.inf)
    np.maximum.at(best, owner, cosines)
    if np.isinf(best).any():
        raise UserError(f"{int(np.isinf(best).sum())} captions have no reference feature")
    best = np.maximum(best, 0)
    both = scores + best
    return np.divide(2 * scores * best, both, out=np.zeros_like(both), where=both > 0)


def _unit(features: Values, what: str) -> Values:
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise UserError(f"{int((lengths == 0).sum())} {what} features are zero")
    unit: Values = rows / lengths
    return unit
