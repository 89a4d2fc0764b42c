"""How other evaluators score retrieval, ties and rounding included: to compare with their numbers.

Both take the first k of ``torch.topk``, which breaks ties by an order of its own, so a model that
cannot tell its candidates apart does not score chance. Our own rule is in
:mod:`gmail_align.metrics.retrieval_hits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmail_align.errors import UserError
from gmail_align.metrics.ranks import full_precision, unit_rows

_SCORES = 1 << 26
"""Scores held at once: 256 MB in float32."""

Hits = dict[int, Tensor]
"""k -> (queries,) float64: 1 where a match is among the first k, else 0."""


class Compat(StrEnum):
    """Evaluators whose rule can be followed."""

    CLIP_BENCHMARK = "clip_benchmark"
    """``clip_benchmark.metrics.zeroshot_retrieval`` (1.6.2): float32 cosines."""
    LONG_CLIP = "long_clip"
    """Long-CLIP's ``eval/retrieval/flickr30k.py``: float16 cosines through a float16 softmax, which
    leaves some hundred distinct values, so that most of what decides is the order of ties."""


def parse_compat(name: str) -> Compat:
    """Return the rule called ``name``.

    Raises:
        UserError: there is none.
    """
    try:
        return Compat(name)
    except ValueError:
        known = ", ".join(Compat)
        raise UserError(f"{name!r} is not a known evaluator: use {known}") from None


def compat_hits(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "m d"],
    text_image: Int[Tensor, " m"],
    ks: tuple[int, ...],
    rule: Compat,
) -> tuple[Hits, Hits]:
    """Score every image (its texts) and every text (its image) by another evaluator's rule.

    Scores are made in blocks; up to 67 million of them come from one product, as there, and beyond
    that equal scores of different blocks may differ in their last bit.
    """
    owner = text_image.to(images.device).long()
    places = torch.arange(len(images), device=images.device)
    with full_precision(images.device):
        make = _cosines if rule is Compat.CLIP_BENCHMARK else _half_softmaxes
        i2t = _hits(make(images, texts, by_text=False), places, owner, ks)
        t2i = _hits(make(images, texts, by_text=True), owner, places, ks)
    return i2t, t2i


def _hits(
    blocks: Iterator[Tensor],
    query_labels: Int[Tensor, " q"],
    candidate_labels: Int[Tensor, " c"],
    ks: tuple[int, ...],
) -> Hits:
    """Look for a match among the first k of each row; every k is a search of its own, as there."""
    hits: dict[int, list[Tensor]] = {k: [] for k in ks}
    start = 0
    for scores in blocks:
        labels = query_labels[start : start + len(scores)]
        for k in ks:
            first = scores.topk(min(k, scores.shape[1]), dim=1).indices
            hits[k].append((candidate_labels[first] == labels[:, None]).any(dim=1))
        start += len(scores)
    return {k: torch.cat(parts).double() for k, parts in hits.items()}


def _cosines(images: Tensor, texts: Tensor, *, by_text: bool) -> Iterator[Tensor]:
    """Yield rows of float32 cosines; both directions read one product of texts and images."""
    rows, columns = unit_rows(texts), unit_rows(images)
    if by_text:
        yield from _blocks(rows, len(columns), lambda some: some @ columns.T)
    else:
        yield from _blocks(columns, len(rows), lambda some: (rows @ some.T).T)


def _half_softmaxes(images: Tensor, texts: Tensor, *, by_text: bool) -> Iterator[Tensor]:
    """Yield rows of softmaxes of cosines, features, cosines and softmaxes all float16."""
    columns, rows = _half_unit(images), _half_unit(texts)
    queries, candidates = (rows, columns) if by_text else (columns, rows)
    yield from _blocks(queries, len(candidates), lambda some: (some @ candidates.T).softmax(dim=-1))


def _half_unit(features: Tensor) -> Tensor:
    half = features.half()
    unit: Tensor = half / half.norm(dim=-1, keepdim=True)
    return unit


def _blocks(
    queries: Tensor, candidates: int, score: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    for some in torch.split(queries, max(1, _SCORES // candidates)):
        yield score(some)
