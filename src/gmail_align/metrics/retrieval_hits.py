"""Image-text retrieval: R@k both ways, tie-safe, streamed, with intervals over images.

Definitions are CLIP_benchmark's: an image is found when any of its captions is in the first k,
a caption when its one image is. All captions of an image count, however many it has; an image
without any stands among the candidates of every caption and is never found itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray
from torch import Tensor

from gmail_align.metrics.bootstrap import Estimate, Values, bootstrap_means
from gmail_align.metrics.compat import Compat, compat_hits
from gmail_align.metrics.ranks import (
    TIE,
    Ranks,
    full_precision,
    recall_at,
    require_features,
    require_labels,
    tally,
    unit_rows,
)
from gmail_align.metrics.statistics import Column, mean_column

_TILE_CPU = (256, 2048)
"""Texts x images scored at once on a CPU: the tile stays in its cache."""
_TILE_GPU = (8192, 8192)


@dataclass(frozen=True)
class RetrievalHits:
    """Each query's probability of a match among its first k.

    Attributes:
        i2t: ``i2t_r1``, ... -> (n,) of the images.
        t2i: ``t2i_r1``, ... -> (m,) of the texts.
        owner: (m,) the image of each text.
    """

    i2t: Mapping[str, Values]
    t2i: Mapping[str, Values]
    owner: NDArray[np.int64]

    def estimates(self, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
        """Return the recalls; both intervals resample images, a text coming with its image."""
        return bootstrap_means(self.i2t, resamples=resamples, seed=seed) | bootstrap_means(
            self.t2i, clusters=self.owner, resamples=resamples, seed=seed
        )

    def columns(self) -> dict[str, Column]:
        """Return what every image adds to each recall: to compare results image by image."""
        count = max(len(hits) for hits in self.i2t.values())
        sizes = np.bincount(self.owner, minlength=count)
        by_image = {name: np.bincount(self.owner, hits, count) for name, hits in self.t2i.items()}
        return {name: mean_column(hits) for name, hits in self.i2t.items()} | {
            name: mean_column(sums, sizes) for name, sums in by_image.items()
        }


def retrieval_hits(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "m d"],
    text_image: Int[Tensor, " m"],
    ks: tuple[int, ...] = (1, 5, 10),
    *,
    compat: Compat | None = None,
) -> RetrievalHits:
    """Search both ways, by our rule or another evaluator's.

    Args:
        images: features.
        texts: features.
        text_image: row in ``images`` of each text's image.
        ks: cut-offs; one beyond the number of candidates is clipped to it.
        compat: another evaluator's rule for ties and precision; None is ours.

    Raises:
        UserError: see `retrieval_ranks`.
    """
    if compat is not None:
        require_retrieval(images, texts, text_image)
        to_text, to_image = compat_hits(images, texts, text_image, ks, compat)
    else:
        directions = retrieval_ranks(images, texts, text_image)
        to_text, to_image = ({k: recall_at(ranks, k) for k in ks} for ranks in directions)
    i2t = {f"i2t_r{k}": hits.cpu().numpy() for k, hits in to_text.items()}
    t2i = {f"t2i_r{k}": hits.cpu().numpy() for k, hits in to_image.items()}
    return RetrievalHits(i2t, t2i, text_image.cpu().numpy().astype(np.int64))


def retrieval_ranks(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "m d"], text_image: Int[Tensor, " m"]
) -> tuple[Ranks, Ranks]:
    """Rank texts for every image and images for every text, in one pass over score tiles.

    Args:
        images: features, any float dtype; rows are normalised here.
        texts: features, normalised likewise.
        text_image: row in ``images`` of each text's image.

    Returns:
        Ranks of the n images (its best caption) and of the m texts (its image). Memory is
        O(n + m) besides one tile; scores are float32.

    Raises:
        UserError: features are not finite or of different dims, or a label is out of range.
    """
    require_retrieval(images, texts, text_image)
    owner = text_image.to(images.device).long()
    with full_precision(images.device):
        rows = unit_rows(images)
        own = _own_scores(rows, texts, owner)
        best = own.new_full((len(rows),), -torch.inf).scatter_reduce_(0, owner, own, "amax")
        equal = torch.bincount(owner[own >= best[owner] - TIE], minlength=len(rows))
        i2t, t2i = _stream(rows, texts, owner, best, own)
    return Ranks(i2t[0], i2t[1], equal), Ranks(t2i[0], t2i[1], torch.ones_like(owner))


def _stream(
    images: Float32[Tensor, "n d"],
    texts: Float[Tensor, "m d"],
    owner: Int[Tensor, " m"],
    best: Float32[Tensor, " n"],
    own: Float32[Tensor, " m"],
) -> tuple[Int[Tensor, "2 n"], Int[Tensor, "2 m"]]:
    """Count negatives above and tied, for images against ``best`` and for texts against ``own``."""
    height, width = _TILE_GPU if images.is_cuda else _TILE_CPU
    i2t, t2i = owner.new_zeros(2, len(images)), owner.new_zeros(2, len(texts))
    columns = torch.arange(len(images), device=images.device)
    for top in range(0, len(texts), height):
        down = slice(top, top + height)
        block = unit_rows(texts[down])
        for left in range(0, len(images), width):
            across = slice(left, left + width)
            tile = block @ images[across].T
            tile.masked_fill_(owner[down, None] == columns[None, across], -torch.inf)
            i2t[:, across] += torch.stack(tally(tile, best[None, across], dim=0))
            t2i[:, down] += torch.stack(tally(tile, own[down, None], dim=1))
    return i2t, t2i


def _own_scores(
    images: Float32[Tensor, "n d"], texts: Float[Tensor, "m d"], owner: Int[Tensor, " m"]
) -> Float32[Tensor, " m"]:
    """Return the cosine of every text with its own image."""
    blocks = zip(torch.split(texts, 8192), torch.split(owner, 8192), strict=True)
    return torch.cat([(unit_rows(some) * images[rows]).sum(1) for some, rows in blocks])


def require_retrieval(images: Tensor, texts: Tensor, text_image: Tensor) -> None:
    """Check that features fit each other.

    Raises:
        UserError: one sentence that says what does not fit.
    """
    require_features(images=images, texts=texts)
    require_labels("text_image labels", text_image, len(texts), len(images))
