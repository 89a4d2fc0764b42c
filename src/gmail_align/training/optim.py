"""Learning-rate schedules and parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from gmail_align.training.config import OptimConfig


def learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate of ``step`` (0-based).

    ``cosine_restarts`` is SGDR (Loshchilov & Hutter 2017): periods of ``restart_every`` steps, each
    ``restart_growth`` times as long as the one before.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done, total = step - config.warmup, max(config.steps - config.warmup, 1)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        return config.lr * max(0.0, 1 - done / total)
    if config.schedule == "cosine":
        return _cosine(min(done / total, 1.0), config)
    period = config.restart_every
    while config.restart_growth > 1 and done >= period:
        done, period = done - period, period * config.restart_growth
    return _cosine((done % period) / period, config)


def _cosine(phase: float, config: OptimConfig) -> float:
    """Return the rate at ``phase`` (0 to 1) of half a cosine from the peak to the floor."""
    share = 0.5 * (1 + math.cos(math.pi * phase))
    return (
        config.lr * (config.floor + (1 - config.floor) * share)
        if config.floor
        else (config.lr * share)
    )


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    weight_decay: float,
    shares: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Split parameters into decayed matrices and undecayed vectors and scalars.

    Args:
        parameters: What is trained, by name.
        weight_decay: Decay of matrices.
        shares: Share of the learning rate by name; what it does not name has the whole rate.

    Returns:
        Groups of AdamW, each with the ``share`` of the learning rate that it is trained at.
    """
    shares, groups = shares or {}, []
    for share in sorted({1.0, *(shares.get(name, 1.0) for name in parameters)}, reverse=True):
        own = [value for name, value in parameters.items() if shares.get(name, 1.0) == share]
        matrices = [parameter for parameter in own if parameter.ndim >= 2]
        vectors = [parameter for parameter in own if parameter.ndim < 2]
        groups += [
            {"params": matrices, "weight_decay": weight_decay, "share": share},
            {"params": vectors, "weight_decay": 0.0, "share": share},
        ]
    return groups
