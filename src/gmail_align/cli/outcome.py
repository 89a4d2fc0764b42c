"""What a finished run prints: its rows, its claims, what is not available, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_SHOWN: Final = ("CIDEr", "BLEU4", "METEOR", "ROUGE_L", "SPICE", "accuracy")
_COLUMNS: Final = 3


def outcome_lines(result: Mapping[str, Any], again: str, then: str) -> list[str]:
    """Lay out the result of a run for people.

    Args:
        result: What the run returned.
        again: The command of the run.
        then: What a new user does next.
    """
    lines = list(_table(result["rows"]))
    lines += [_claim(claim) for claim in result["claims"]]
    lines += [f"{name} is not available: {why}" for name, why in result["unavailable"].items()]
    lines.append(f"report: {result['report']}")
    if result["seeds"] == 1 and result["claims"]:
        lines.append(f"one seed decides little; five do: {again}")
    return [*lines, f"next: {then}"]


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the rows of a run as lines of equal columns."""
    known = {metric for row in rows for metric in row["metrics"]}
    metrics = [name for name in _SHOWN if name in known][:_COLUMNS]
    if not metrics:
        return
    cells = [["", "real images", *metrics]]
    for row in rows:
        numbers = [_number(row["metrics"].get(name)) for name in metrics]
        cells.append([row["label"], str(row["real_images"]), *numbers])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *others = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        yield "  ".join([first, *others]).rstrip()


def _claim(claim: Mapping[str, Any]) -> str:
    one = claim["difference"]
    found = "" if one is None else f" ({claim['metric']} {_number(one, '+')})"
    return f"{claim['name']}: {claim['verdict']}{found}"


def _number(estimate: Mapping[str, Any] | None, sign: str = "") -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    low, high = estimate["low"], estimate["high"]
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{estimate['value']:{sign}.3f}{interval}"
