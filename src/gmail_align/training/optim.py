"""Learning-rate schedules and parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from gmail_align.training.config import OptimConfig


def learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate of ``step`` (0-based).

    ``cosine_restarts`` is SGDR (Loshchilov & Hutter 2017) with T_mult 1 and minimum 0.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done, total = step - config.warmup, max(config.steps - config.warmup, 1)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        return config.lr * max(0.0, 1 - done / total)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(done / total, 1.0)))
    phase = (done % config.restart_every) / config.restart_every
    return config.lr * 0.5 * (1 + math.cos(math.pi * phase))


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into decayed matrices and undecayed vectors and scalars."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
