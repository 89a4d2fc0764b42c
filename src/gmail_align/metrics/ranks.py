"""Tie-safe ranking: what a model that cannot tell its candidates apart scores is chance.

A query's rank is settled by three counts: negatives above its best positive, negatives tied
with it, and positives tied with it. Counting only what is strictly above would give a collapsed
model a perfect score.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from gmail_align.errors import UserError

TIE = 1e-6
"""Cosines nearer than this are equal: a float32 dot product does not resolve them."""

LARGEST = 1e18
"""Numbers beyond it have squares that float32 does not hold."""
SMALLEST = 1e-12
"""Features of which no number is larger could not be told from zeros."""

_SCORES = 1 << 24
"""Scores held at once when a whole row of candidates is needed: 64 MB."""


@dataclass(frozen=True)
class Ranks:
    """Where the best positive of every query stands, before ties are broken.

    Attributes:
        above: negatives that score higher than the best positive.
        tied: negatives that score the same.
        positives: positives that score the same, the best one included; 0 where there is none.
    """

    above: Int[Tensor, " q"]
    tied: Int[Tensor, " q"]
    positives: Int[Tensor, " q"]

    @property
    def expected(self) -> Float64[Tensor, " q"]:
        """Return the expected 1-based rank of the best positive, ties broken at random.

        The first of p positives among t tied negatives stands on average at (t + p + 1) / (p + 1).
        A query without a positive stands behind every candidate.
        """
        return self.above.double() + 1 + self.tied.double() / (self.positives.double() + 1)


def recall_at(ranks: Ranks, k: int) -> Float64[Tensor, " q"]:
    """Return each query's probability that a positive is among its first k, ties at random.

    With r = k - above places left for the tied group, it is hypergeometric:
    1 - C(tied, r) / C(tied + positives, r). A k beyond the number of candidates gives 1. A query
    without any positive has 0, as in CLIP_benchmark.

    Raises:
        UserError: k is below 1.
    """
    if k < 1:
        raise UserError(f"recall at {k} is undefined: k starts at 1")
    places = k - ranks.above
    tied, positives = ranks.tied.double(), ranks.positives.double()
    miss = torch.ones_like(tied)
    for place in range(min(k, int(ranks.tied.max()) + 1) if len(tied) else 0):
        chance = (tied - place).clamp(min=0) / (tied + positives - place).clamp(min=1)
        miss = torch.where(place < places, miss * chance, miss)
    return torch.where(ranks.positives > 0, 1 - miss, 0.0)


def label_ranks(
    queries: Float[Tensor, "q d"],
    candidates: Float[Tensor, "c d"],
    query_labels: Int[Tensor, " q"],
    candidate_labels: Int[Tensor, " c"],
) -> Ranks:
    """Rank candidates by cosine; those with the query's label are its positives.

    Memory is O(block x c), never q x c.

    Raises:
        UserError: features cannot be compared, or a query has no positive.
    """
    require_features(queries=queries, candidates=candidates)
    _require_positives(query_labels, candidate_labels)
    block = max(1, _SCORES // len(candidates))
    with full_precision(queries.device):
        rows = unit_rows(candidates)
        parts = [
            _rank_block(unit_rows(some), rows, labels, candidate_labels)
            for some, labels in zip(
                torch.split(queries, block), torch.split(query_labels, block), strict=True
            )
        ]
    return Ranks(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _rank_block(
    queries: Float32[Tensor, "b d"],
    candidates: Float32[Tensor, "c d"],
    query_labels: Int[Tensor, " b"],
    candidate_labels: Int[Tensor, " c"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three counts of `Ranks` for one block of queries."""
    scores = queries @ candidates.T
    positive = query_labels[:, None] == candidate_labels[None, :]
    own = scores.masked_fill(~positive, -torch.inf)
    best = own.amax(1, keepdim=True)
    positives = (own >= best - TIE).sum(1)
    above, tied = tally(scores.masked_fill_(positive, -torch.inf), best, dim=1)
    return above, tied, positives


def tally(
    scores: Float32[Tensor, "b c"], best: Float32[Tensor, ...], *, dim: int
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Count along ``dim`` the scores above ``best`` and those tied with it.

    Comparisons are written and summed as float32, 20 times faster on a CPU than bool sums;
    exact, since no block has 2**24 rows or columns.
    """
    marks = torch.empty_like(scores)
    above = torch.gt(scores, best + TIE, out=marks).sum(dim).long()
    reached = torch.ge(scores, best - TIE, out=marks).sum(dim).long()
    return above, reached - above


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run matrix products in true float32: no TF32, no bfloat16, no autocast, no gradient."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def unit_rows(features: Float[Tensor, "*rows d"]) -> Float32[Tensor, "*rows d"]:
    """Return the rows at length 1 in float32; a row of zeros stays zero."""
    return torch.nn.functional.normalize(features.float(), dim=-1)


def require_features(**features: Tensor) -> None:
    """Check that all are finite (rows, dim) floats of one dim on one device.

    Raises:
        UserError: one sentence that names the input.
    """
    (first, reference), *_ = features.items()
    for name, rows in features.items():
        if rows.ndim != 2 or not rows.is_floating_point() or rows.numel() == 0:
            raise UserError(
                f"{name} are {rows.dtype} of shape {tuple(rows.shape)}; features are floats "
                "(rows, dim) with at least one row"
            )
        if rows.shape[1] != reference.shape[1]:
            raise UserError(
                f"{name} have {rows.shape[1]} dimensions and {first} have {reference.shape[1]}; "
                "both must come from the same encoder"
            )
        if rows.device != reference.device:
            raise UserError(f"{name} are on {rows.device} and {first} on {reference.device}")
        parts = torch.split(rows.detach(), 8192)
        bad = sum(int((~part.isfinite()).any(1).sum()) for part in parts)
        if bad:
            raise UserError(f"{bad} of {len(rows)} rows of {name} hold NaN or infinity")
        largest = max(float(part.abs().max()) for part in parts)
        if largest > LARGEST:
            raise UserError(f"{name} hold numbers beyond {LARGEST:g}, too large to be normalised")
        if 0 < largest < SMALLEST:
            raise UserError(
                f"{name} hold no number beyond {SMALLEST:g}, too small to be normalised"
            )


def require_pairs(
    real: Tensor, generated: Tensor, *, groups: Tensor | None = None, least: int = 1
) -> None:
    """Check that row i of both is a pair, with one group label a pair if there are any.

    Raises:
        UserError: one sentence with both numbers.
    """
    require_features(real=real, generated=generated)
    if len(real) != len(generated):
        raise UserError(f"{len(real)} real and {len(generated)} generated features do not pair up")
    if len(real) < least:
        raise UserError(f"too few pairs: {len(real)}, and at least {least} are needed")
    if groups is not None and groups.shape != (len(real),):
        raise UserError(f"{groups.numel()} group labels were given for {len(real)} pairs")


def require_labels(name: str, labels: Tensor, count: int, classes: int) -> None:
    """Check for ``count`` integer labels from 0 to ``classes`` - 1.

    Raises:
        UserError: one sentence that says which label is wrong.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (count,):
        raise UserError(
            f"{name} are {labels.dtype} of shape {tuple(labels.shape)}; {count} integers are needed"
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise UserError(
            f"{len(outside)} of {count} {name} are outside 0..{classes - 1}, "
            f"for example {int(outside[0])}"
        )


def _require_positives(query_labels: Tensor, candidate_labels: Tensor) -> None:
    alone = int((~torch.isin(query_labels, candidate_labels)).sum())
    if alone:
        raise UserError(f"{alone} of {len(query_labels)} queries have no matching candidate")
