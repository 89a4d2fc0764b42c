"""What the page's script shows: the pair behind each point of the maps, and its cosines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from gmail_align.errors import DataError
from gmail_align.report.data import Embeddings, PairFigure
from gmail_align.report.images import LONGEST, data_uri
from gmail_align.report.projection import MOST, thinned_rows

_THUMBNAIL: Final = 112
"""Pixels along the longer side: 600 of them stay below two megabytes."""


def explorer(
    pairs: Sequence[PairFigure], embeddings: Mapping[str, tuple[Embeddings, Embeddings]]
) -> dict[str, Any] | None:
    """Return the drawn pairs and their cosines in each map, as JSON values.

    Args:
        pairs: The pair of row i of the embeddings, for every row.
        embeddings: Name of a map -> (n, d) features of real and of generated images.

    Returns:
        ``pairs``, each a caption and two image addresses, and ``maps``, each a name and one cosine
        a pair; None where no map shows these pairs.

    Raises:
        DataError: an image cannot be read.
    """
    shown = {name: both for name, both in embeddings.items() if _shows(pairs, both)}
    if not pairs or not shown:
        return None
    rows = thinned_rows(len(pairs))
    return {
        "pairs": [pair_view(pairs[row], row, _THUMBNAIL) for row in rows],
        "maps": [
            {"name": name, "cosines": _cosines(real[rows], generated[rows])}
            for name, (real, generated) in shown.items()
        ],
    }


def _shows(pairs: Sequence[PairFigure], embeddings: tuple[Embeddings, Embeddings]) -> bool:
    return all(len(side) == len(pairs) for side in embeddings)


def pair_view(pair: PairFigure, row: int, longest: int = LONGEST) -> dict[str, str]:
    """Return a pair's caption, and both images as addresses.

    Raises:
        DataError: an image cannot be read.
    """
    return {
        "caption": pair.caption,
        "real": data_uri(pair.real, f"the real image of pair {row}", longest),
        "generated": data_uri(pair.generated, f"the generated image of pair {row}", longest),
    }


def _cosines(real: Embeddings, generated: Embeddings) -> list[float]:
    """Return the cosine of each pair, to the digits that are shown."""
    if real.shape != generated.shape or len(real) > MOST:
        raise DataError(f"features of shapes {real.shape} and {generated.shape} are not pairs")
    lengths = np.linalg.norm(real, axis=1) * np.linalg.norm(generated, axis=1)
    cosines = (real * generated).sum(1) / np.maximum(lengths, 1e-12)
    return [round(float(value), 4) for value in cosines]
