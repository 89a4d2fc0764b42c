"""Figure 3 of the paper: real and generated embeddings in the plane, and how separable they are.

t-SNE as there, and PCA next to it, which bends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gmail_align.errors import DataError
from gmail_align.report.data import Embeddings

MOST: Final = 300
"""Points drawn of each kind; more only make the picture denser."""
PERPLEXITY: Final = 30.0
_LEAST: Final = 4

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """Real and generated embeddings in the plane.

    Attributes:
        real: (n, 2) places in 0..1, the picture's own scale.
        generated: (m, 2) places.
        total: How many embeddings of both kinds there were, drawn or not.
        separability: Share of embeddings whose nearest neighbour is of their own kind, measured
            on the embeddings themselves; the mean over the two kinds.
        perplexity: What t-SNE used; 0 for PCA.
    """

    real: Points
    generated: Points
    total: tuple[int, int]
    separability: float
    perplexity: float


def project(real: Embeddings, generated: Embeddings) -> Projection | None:
    """Lay embeddings out with t-SNE after scaling them to length one.

    Of more than ``MOST`` of a kind, evenly spaced rows are drawn: where row i of both is a pair, it
    stays one. The layout is the same on every run on one machine.

    Args:
        real: (n, d) features of real images.
        generated: (m, d) features of generated images.

    Returns:
        The picture, or None where there are too few embeddings, or all are equal.

    Raises:
        DataError: the arrays are not two finite matrices of one width.
    """
    both = _drawn(real, generated)
    if both is None:
        return None
    return _placed(_tsne(both), real, generated, _perplexity(both))


def lay_out(real: Embeddings, generated: Embeddings) -> Points | None:
    """Return the places of every embedding by t-SNE, real before generated; see :func:`project`."""
    _require_matrices(real, generated)
    both = _joined(real, generated)
    return None if both is None else _tsne(both)


def project_pca(real: Embeddings, generated: Embeddings) -> Projection | None:
    """Lay embeddings out on their first two principal axes; see :func:`project`.

    The sign of an axis is that in which its largest weight is positive.
    """
    both = _drawn(real, generated)
    if both is None:
        return None
    axes = np.linalg.svd(both - both.mean(0), full_matrices=False)[2][:2]
    axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])[:, None]
    return _placed((both - both.mean(0)) @ axes.T, real, generated, 0.0)


def _drawn(real: Embeddings, generated: Embeddings) -> Points | None:
    """Return the rows that are drawn, real before generated; None where there is nothing to see."""
    _require_matrices(real, generated)
    return _joined(_thinned(real), _thinned(generated))


def _joined(real: Embeddings, generated: Embeddings) -> Points | None:
    if min(len(real), len(generated)) < _LEAST:
        return None
    both = np.concatenate([unit_rows(real), unit_rows(generated)])
    return both if np.ptp(both, axis=0).any() else None


def _placed(
    places: Points, real: Embeddings, generated: Embeddings, perplexity: float
) -> Projection:
    """Scale places into the picture and part the two kinds."""
    low, span = places.min(0), np.ptp(places, axis=0)
    centred: Points = 0.5 + (places - low - span / 2) / max(float(span.max()), 1e-12)
    first, total = len(_thinned(real)), (len(real), len(generated))
    return Projection(
        centred[:first], centred[first:], total, separability(real, generated), perplexity
    )


def separability(real: Embeddings, generated: Embeddings) -> float:
    """Return how often the nearest other embedding (by cosine) is of the same kind.

    The mean of the share among real and the share among generated. 1: two separate clouds; 0.5:
    mixed; below: most find one of the other kind first, as in pairs that fall together. At most
    ``MOST`` of a kind are looked at, so that values of different sets compare.
    """
    rows = unit_rows(_thinned(real)), unit_rows(_thinned(generated))
    both = np.concatenate(rows)
    kind = np.repeat([0, 1], [len(rows[0]), len(rows[1])])
    cosines = both @ both.T
    np.fill_diagonal(cosines, -np.inf)
    same = kind[cosines.argmax(1)] == kind
    return float(np.mean([same[kind == 0].mean(), same[kind == 1].mean()]))


def _perplexity(rows: Points) -> float:
    return min(PERPLEXITY, (len(rows) - 1) / 3)


def _tsne(rows: Points) -> Points:
    """Run t-SNE in one thread, as sums in several threads are not added in a fixed order."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    model = TSNE(n_components=2, init="pca", random_state=0, perplexity=_perplexity(rows), n_jobs=1)
    with threadpool_limits(limits=1):
        return np.asarray(model.fit_transform(rows), dtype=np.float64)


def thinned_rows(n: int) -> list[int]:
    """Return the rows of ``n`` that are drawn: all, or ``MOST`` that are evenly spaced."""
    if n <= MOST:
        return list(range(n))
    return [int(row) for row in np.linspace(0, n - 1, MOST).round()]


def _thinned(rows: Embeddings) -> Embeddings:
    thinned: Embeddings = rows[thinned_rows(len(rows))]
    return thinned


def unit_rows(rows: Embeddings) -> Points:
    """Scale rows to length one, in float64; a row of zeros stays."""
    wide = np.asarray(rows, dtype=np.float64)
    scaled: Points = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return scaled


def _require_matrices(real: Embeddings, generated: Embeddings) -> None:
    shapes = np.shape(real), np.shape(generated)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1]:
        raise DataError(f"embeddings of shapes {shapes[0]} and {shapes[1]} do not compare")
    if shapes[0][1] < 2:
        raise DataError("embeddings of fewer than 2 numbers cannot be drawn")
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
        raise DataError("embeddings hold values that are not finite numbers")
