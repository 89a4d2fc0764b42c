"""Numbers as text."""

from __future__ import annotations

import math

from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.data import has_interval
from gmail_align.report.names import PERCENT, Unit

NOTHING = "–"


def number(value: float, unit: Unit = PERCENT) -> str:
    """Write one number, with a true minus sign and without a negative zero."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{abs(value) * unit.scale:.{unit.digits}f}"
    if not text.strip("0."):
        return text
    return ("−" if value < 0 else "+" if unit.signed else "") + text


def interval(value: Estimate, unit: Unit = PERCENT) -> str:
    """Write the 95% interval; empty when it is unknown."""
    if not has_interval(value):
        return ""
    low, high = number(value.low, unit), number(value.high, unit)
    return f"{low}\u00a0to\u00a0{high}" if "−" in low + high or unit.signed else f"{low}–{high}"


def count(value: float) -> str:
    """Write a whole number with commas between thousands."""
    return f"{round(value):,}"


def duration(seconds: float) -> str:
    """Write a span of time in the two largest units that it has."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
