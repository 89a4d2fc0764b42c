"""The captions nearest to a feature: exact, in blocks, over stores larger than memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from gmail_align.captioning.provenance import require_finite
from gmail_align.errors import ConfigError, DataError
from gmail_align.extras import require

STORE_BLOCK = 16_384
QUERY_BLOCK = 1_024
_FAISS_PLACE = re.compile(r"^Error in .* at \S+:\d+: (Error: .* failed: )?")


@dataclass(frozen=True)
class Groups:
    """What a query leaves out: rows of its own group, such as captions of the same words."""

    queries: Int[Tensor, " q"]
    """Group of each query."""
    store: Int[Tensor, " n"]
    """Group of each row of the store."""


def nearest(
    queries: Float[Tensor, "q d"],
    store: Float[Tensor, "n e"],
    k: int,
    apart: Groups | None = None,
    device: torch.device | None = None,
) -> Int[Tensor, "q k"]:
    """Return the rows of ``store`` with the largest cosines to each query, best first.

    The store is read once, block by block, so that memory holds one block, one square of scores and
    ``k`` candidates a query. Equal cosines are in the order of the store.

    Args:
        queries: Features; their lengths do not matter.
        store: Features, maybe mapped from a file; their lengths do not matter.
        k: Rows wanted of each query.
        apart: Rows that are left out; none when None.
        device: Where cosines are computed; on the processor when None.

    Raises:
        DataError: the widths differ, a feature is not finite, or a query is left with fewer than
            ``k`` rows.
    """
    _require(queries, store, k)
    require_finite(queries)
    best = torch.full((len(queries), k), -torch.inf, device=device)
    rows = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    for start in range(0, len(store), STORE_BLOCK):
        part_of_store = store[start : start + STORE_BLOCK].to(device)
        block = normalize(require_finite(part_of_store.float()), dim=-1)
        for first in range(0, len(queries), QUERY_BLOCK):
            part = slice(first, first + QUERY_BLOCK)
            scores = normalize(queries[part].to(device).float(), dim=-1) @ block.T
            if apart is not None:
                own = apart.queries[part, None] == apart.store[None, start : start + STORE_BLOCK]
                scores.masked_fill_(own.to(device), -torch.inf)
            near, at = scores.topk(min(k, len(block)), dim=1)
            _merge(best[part], rows[part], near, at + start)
    if bool(torch.isinf(best).any()):
        short = int(torch.isinf(best).any(1).sum())
        raise DataError(
            f"{short} of {len(queries)} queries have fewer than {k} other captions to retrieve:"
            " give more captions, or retrieve fewer"
        )
    return rows.cpu()


def _merge(
    best: Float[Tensor, "q k"],
    rows: Int[Tensor, "q k"],
    near: Float[Tensor, "q j"],
    at: Int[Tensor, "q j"],
) -> None:
    """Keep the best of the candidates so far and of a block's, in place."""
    scores, places = torch.cat([best, near], dim=1), torch.cat([rows, at], dim=1)
    by_row = places.argsort(dim=1, stable=True)
    scores, places = scores.gather(1, by_row), places.gather(1, by_row)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : best.shape[1]]
    best.copy_(scores.gather(1, order))
    rows.copy_(places.gather(1, order))


def nearest_by_faiss(
    queries: Float[Tensor, "q d"],
    store: Float[Tensor, "n e"],
    k: int,
    index: Any,
    apart: Groups | None = None,
) -> Int[Tensor, "q k"]:
    """Approximate :func:`nearest` by an index of :func:`build_index`; ``Flat`` is exact.

    A query that ``apart`` leaves with too few rows is searched exactly.

    Raises:
        DataError: as for :func:`nearest`.
    """
    _require(queries, store, k)
    wanted = min(len(store), k if apart is None else 4 * k + 16)
    rows = torch.empty(len(queries), k, dtype=torch.int64)
    missing = []
    for first in range(0, len(queries), QUERY_BLOCK):
        part = slice(first, first + QUERY_BLOCK)
        _, near = index.search(_unit(queries[part]), wanted)
        for query, candidates in enumerate(near, start=first):
            kept = candidates[candidates >= 0]
            if apart is not None:
                kept = kept[(apart.store[kept] != apart.queries[query]).numpy()]
            if len(kept) < k:
                missing.append(query)
            else:
                rows[query] = torch.from_numpy(kept[:k])
    if missing:
        some = torch.tensor(missing)
        own = None if apart is None else Groups(apart.queries[some], apart.store)
        rows[some] = nearest(queries[some], store, k, own)
    return rows


def build_index(store: Float[Tensor, "n e"], index: str) -> Any:
    """Build a faiss index, which keeps a copy of the store in memory.

    Args:
        store: Features.
        index: What faiss's ``index_factory`` is to build, for example ``IVF1024,Flat``.

    Raises:
        MissingExtraError: faiss is not installed.
        ConfigError: faiss does not know the index, or cannot train it on so few captions.
    """
    faiss = require("faiss", "ifcap")
    try:
        built = faiss.index_factory(store.shape[1], index, faiss.METRIC_INNER_PRODUCT)
        if not built.is_trained:
            step = max(1, len(store) // 100_000)
            built.train(_unit(store[::step]))
        for start in range(0, len(store), STORE_BLOCK):
            built.add(_unit(store[start : start + STORE_BLOCK]))
    except RuntimeError as error:
        reason = _FAISS_PLACE.sub("", str(error).splitlines()[-1])
        raise ConfigError(f"faiss cannot build the index {index!r}: {reason}") from error
    return built


def _unit(features: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    unit = normalize(require_finite(features.float()), dim=-1)
    rows: np.ndarray[Any, np.dtype[np.float32]] = unit.numpy()
    return rows


def _require(queries: Tensor, store: Tensor, k: int) -> None:
    if queries.shape[1] != store.shape[1]:
        raise DataError(
            f"features {queries.shape[1]} wide cannot be looked up among captions of"
            f" {store.shape[1]}: extract both with one encoder"
        )
    if len(store) < k:
        raise DataError(f"{k} captions are to be retrieved and there are {len(store)}: give more")
