"""Interpolation of weights between the plain CLIP and the kept step, to apply part of a training.

Such a point often keeps most of what was learnt and loses less of what was known (WiSE-FT, Wortsman
et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def interpolate(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], strength: float
) -> dict[str, Tensor]:
    """Return the parameters at ``strength``: 0 is ``start``, 1 is ``end``.

    LoRA's A matrices stay those of ``end``: its update B A is zero at the start, and scaling B
    alone scales the update.
    """
    return {
        name: value if ".lora_A." in name else torch.lerp(start[name], value, strength)
        for name, value in end.items()
    }


def choose_strength(
    parameters: Mapping[str, nn.Parameter],
    start: Mapping[str, Tensor],
    strengths: Sequence[float],
    evaluate: Callable[[], Mapping[str, float]],
) -> list[dict[str, float]]:
    """Evaluate ``parameters`` at each strength and leave the best one in place.

    Args:
        parameters: The kept step's parameters; changed in place.
        start: Their values before training.
        strengths: What is tried; 1, the step as it is, always is.
        evaluate: Metrics of the present parameters, with the ``score`` that is maximised and, where
            it is 0 for parameters that must not be kept, ``eligible``.

    Returns:
        One row of metrics a strength, ascending, each with its ``strength`` and ``kept``, 1 or 0.
    """
    end = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    rows = []
    for strength in sorted({*strengths, 1.0}):
        put(parameters, interpolate(start, end, strength))
        rows.append({"strength": strength, **evaluate()})
    best = max(
        rows, key=lambda row: (row.get("eligible", 1.0), row["score"], row["strength"] == 1.0)
    )
    put(parameters, interpolate(start, end, best["strength"]))
    return [{**row, "kept": float(row is best)} for row in rows]


@torch.no_grad()
def put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
