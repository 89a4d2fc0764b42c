"""The one format of a result: a named protocol, values with intervals, and what is behind them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gmail_align.artifacts import Artifact
from gmail_align.errors import ArtifactError
from gmail_align.metrics.bootstrap import Estimate

RESULT = "result.json"


def plain(metrics: Mapping[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    """Return name -> ``{value, low, high, n}`` as JSON values; an undefined bound is null."""
    return {
        name: {key: _finite(number) for key, number in estimate.to_dict().items()}
        for name, estimate in metrics.items()
    }


def split(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return ``metrics`` as name -> value and ``intervals`` as name -> [low, high]."""
    return {
        "metrics": {name: estimate.value for name, estimate in metrics.items()},
        "intervals": {
            name: [_finite(estimate.low), _finite(estimate.high)]
            for name, estimate in metrics.items()
        },
    }


def answer(
    metrics: Mapping[str, Estimate],
    protocol: str,
    n: Mapping[str, int],
    start: float,
    *,
    unavailable: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Lay out a result of plain files, ready for JSON.

    It holds ``metrics`` (name -> value), ``intervals`` (name -> [low, high]), ``n``, ``protocol``,
    ``unavailable`` (metric -> why) and ``seconds`` since ``start``, a time of ``time.monotonic``.
    """
    return split(metrics) | {
        "n": dict(n),
        "protocol": protocol,
        "unavailable": dict(unavailable or {}),
        "seconds": round(time.monotonic() - start, 3),
    }


def listed(names: Sequence[str], what: str) -> str:
    """Return ``3 questions: a, b, c``: how many there are, and the first three by name."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}: {shown}"


def read_result(artifact: Artifact) -> dict[str, Any]:
    """Return what a result's ``result.json`` says.

    Raises:
        ArtifactError: the artifact is no result or is damaged.
    """
    if artifact.kind != "result":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}: a result is needed here")
    try:
        body = json.loads(artifact.path(RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{artifact.folder} is damaged: delete it and run again") from error
    if not isinstance(body, dict):
        raise ArtifactError(f"{artifact.folder} is damaged: delete it and run again")
    return body


def _finite(number: float | int) -> float | int | None:
    return number if math.isfinite(number) else None
