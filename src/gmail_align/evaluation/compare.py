"""Paired differences between two results on the same images or questions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from gmail_align.errors import DataError
from gmail_align.evaluation.items import Items
from gmail_align.evaluation.result import answer, listed
from gmail_align.metrics.statistics import differences


def compare_items(
    a: Items,
    b: Items,
    *,
    metrics: Sequence[str] | None = None,
    unavailable: Mapping[str, str] | None = None,
    seed: int = 0,
    start: float | None = None,
) -> dict[str, Any]:
    """Estimate a - b in every metric that both have, on the same resamples of items.

    The answer is laid out as :func:`gmail_align.evaluation.result.answer` does, ``metrics`` being
    differences; ``a`` and ``b`` hold each side's own values.

    Args:
        a: One result.
        b: The other.
        metrics: Only these.
        unavailable: What could not be computed, and why.
        seed: Of the bootstrap.
        start: When the work began, of ``time.monotonic``.

    Raises:
        DataError: the two are of different protocols or items, or have no such metric.
    """
    begun = time.monotonic() if start is None else start
    if a.protocol != b.protocol:
        raise DataError(f"{a.protocol} and {b.protocol} are different protocols: nothing to pair")
    apart = [*(set(a.ids) - set(b.ids)), *(set(b.ids) - set(a.ids))]
    if apart:
        raise DataError(f"only one of the two results has {listed(sorted(apart), 'item')}")
    b = b.in_order_of(a.ids)
    shared = [name for name in a.columns if name in b.columns]
    wanted = [name for name in metrics or shared if name not in (unavailable or {})]
    lacking = [name for name in wanted if name not in shared]
    if lacking or not shared:
        raise DataError(
            f"both results need {', '.join(lacking) or 'a metric in common'}; they have in common "
            f"{', '.join(shared) or 'none'}"
        )
    found = differences(
        {name: a.columns[name] for name in wanted},
        {name: b.columns[name] for name in wanted},
        seed=seed,
    )
    body = answer(found, a.protocol, {"items": len(a.ids)}, begun, unavailable=unavailable)
    sides = {"a": a, "b": b}
    return body | {
        side: {name: items.columns[name].value for name in wanted} for side, items in sides.items()
    }
