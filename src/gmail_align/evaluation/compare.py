"""Paired differences between two results on the same images or questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from gmail_align.errors import DataError, listed
from gmail_align.items import Items
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.metrics.statistics import Column, differences, over_runs
from gmail_align.results import Result, begin_result

FEWEST: Final = 6
"""Items below which no difference is shown: by chance alone, all of five have one sign in more than
5% of comparisons (2 x 0.5^5)."""
_NOISE: Final = 1e-12
"""Differences below it are rounding."""


def score(
    a: Items, b: Items, metrics: Sequence[str] | None = None, *, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate a - b in every metric that both have, on the same resamples of items.

    Args:
        a: One result.
        b: The other.
        metrics: Only these.
        seed: Of the bootstrap.

    Raises:
        DataError: the two are of different protocols or items, or do not have such a metric.
    """
    b, wanted = _matched(a, b, metrics)
    return differences(
        {name: a.columns[name] for name in wanted},
        {name: b.columns[name] for name in wanted},
        seed=seed,
    )


def score_runs(
    a: Sequence[Items], b: Sequence[Items], metrics: Sequence[str] | None = None, *, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate a - b over several runs, run paired with run; see :func:`score`.

    Raises:
        DataError: see :func:`score`.
    """
    ordered_runs: tuple[list[dict[str, Column]], list[dict[str, Column]]] = [], []
    for first, second in zip(a, b, strict=True):
        matched, wanted = _matched(first, second, metrics)
        for side, items in zip(ordered_runs, (first, matched), strict=True):
            ordered = items.in_order_of(a[0].ids)
            side.append({name: ordered.columns[name] for name in wanted})
    return over_runs(*ordered_runs, seed=seed)


def _matched(a: Items, b: Items, metrics: Sequence[str] | None) -> tuple[Items, list[str]]:
    """Return b in the order of a, and the metrics to compare."""
    if a.protocol != b.protocol:
        raise DataError(f"{a.protocol} and {b.protocol} are different protocols: nothing to pair")
    apart = [*(set(a.ids) - set(b.ids)), *(set(b.ids) - set(a.ids))]
    if apart:
        raise DataError(f"only one of the two results has {listed(sorted(apart), 'item')}")
    shared = [name for name in a.columns if name in b.columns]
    lacking = [name for name in metrics or () if name not in shared]
    if lacking or not shared:
        raise DataError(
            f"both results need {', '.join(lacking) or 'a metric in common'}; they have in common "
            f"{', '.join(shared) or 'none'}"
        )
    return b.in_order_of(a.ids), list(metrics or shared)


def verdict(difference: Estimate) -> str:
    """Return what a difference a - b shows, in words.

    ``A is better`` or ``B is better`` need the value and the whole 95% interval on one side of
    zero, and at least :data:`FEWEST` items.
    """
    if difference.n < FEWEST or not difference.low <= difference.high:  # NaN: no interval
        return "cannot tell"
    if min(difference.low, difference.value) > _NOISE:
        return "A is better"
    if max(difference.high, difference.value) < -_NOISE:
        return "B is better"
    return "no difference shown"


def compare_items(
    a: Items,
    b: Items,
    out: Path | None = None,
    *,
    metrics: Sequence[str] | None = None,
    unavailable: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Result:
    """Estimate a - b in every metric that both have.

    The result's ``metrics`` are the differences; ``a`` and ``b`` hold each side's own values, and
    ``verdicts`` what each difference shows.

    Args:
        a: One result.
        b: The other.
        out: Folder of the comparison; None keeps nothing.
        metrics: Only these.
        unavailable: What could not be computed, and why.
        seed: Of the bootstrap.

    Raises:
        DataError: see :func:`score`.
    """
    lost = dict(unavailable or {})
    wanted = None if metrics is None else [name for name in metrics if name not in lost]
    result = begin_result(
        out,
        {"a": a, "b": b},
        {"metrics": wanted},
        protocol=a.protocol,
        task=None,
        n={"items": len(a.ids)},
        seed=seed,
    )
    if result.complete is not None:
        return result.complete
    differences = score(a, b, wanted, seed=seed)
    details = {
        side: {name: items.columns[name].value for name in differences}
        for side, items in (("a", a), ("b", b))
    }
    verdicts = {name: verdict(one) for name, one in differences.items()}
    return result.finish(differences, unavailable=lost, details={**details, "verdicts": verdicts})
