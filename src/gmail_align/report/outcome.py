"""What the terminal shows of a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gmail_align.report.names import ROW_METRICS

_RETRIEVAL: Final = {"R@1, image to text": "i2t_r1", "R@1, text to image": "t2i_r1"}


def outcome_lines(result: Mapping[str, Any], again: str, then: str) -> str:
    """Lay out the result of a run for people.

    Args:
        result: What the run returned.
        again: The command of the run.
        then: What a new user does next.
    """
    lines = list(_row_table(result["rows"])) or list(_encoder_table(result["encoders"]))
    lines += [line for encoder in result["encoders"] for line in _refusal(encoder)]
    lines += [_claim(claim) for claim in result["claims"]]
    lines += [f"{name} is not available: {why}" for name, why in result["unavailable"].items()]
    lines.append(f"report: {result['report']}")
    if result["seeds"] == 1 and result["claims"]:
        lines.append(f"one seed decides little; five do: {again}")
    return "\n".join([*lines, f"next: {then}"])


def _refusal(encoder: Mapping[str, Any]) -> Iterator[str]:
    """Yield why an alignment was not applied, and in how many seeds."""
    refusals, seeds = encoder.get("refusals") or [], len(encoder.get("applied", []))
    if refusals:
        times = f" was not applied in {len(refusals)} of {seeds} seeds" if seeds > 1 else ""
        yield f"{encoder['name']}{times}: {refusals[0]}"


def _row_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what the rows of a run reached on test images."""
    known = {metric for row in rows for metric in row["metrics"]}
    metrics = [name for name in ROW_METRICS if name in known][:3]
    cells = [["", "real images", *metrics]]
    for row in rows:
        numbers = [_number(row["metrics"].get(name)) for name in metrics]
        cells.append([row["label"], str(row["real_images"]), *numbers])
    return _columns(cells) if metrics else iter(())


def _encoder_table(encoders: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what the encoders reached, for a run whose rows learn nothing."""
    scores = [
        {
            f"{name} {word}": of[metric]
            for name, of in encoder.get("retrieval", {}).items()
            for word, metric in _RETRIEVAL.items()
            if metric in of
        }
        | encoder.get("zeroshot", {})
        for encoder in encoders
    ]
    names = dict.fromkeys(name for own in scores for name in own)
    cells = [["", *(encoder["name"] for encoder in encoders)]]
    cells += [[name, *(_number(own.get(name)) for own in scores)] for name in names]
    return _columns(cells) if names else iter(())


def _columns(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines of equal columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *others = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        yield "  ".join([first, *others]).rstrip()


def _claim(claim: Mapping[str, Any]) -> str:
    one = claim["difference"]
    amount = "" if one is None else f" ({claim['metric']} {_number(one, '+')})"
    return f"{claim['name']}: {claim['verdict']}{amount}"


def _number(estimate: Mapping[str, Any] | None, sign: str = "") -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    low, high = estimate["low"], estimate["high"]
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{estimate['value']:{sign}.3f}{interval}"
