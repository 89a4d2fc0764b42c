"""Recall at one, as the guards of trainings count it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def recall_at_one(scores: Float[Tensor, "q c"], own: Bool[Tensor, "q c"]) -> float:
    """Return the share of rows whose best column is one of their own; ties are misses."""
    best_own = scores.masked_fill(~own, -torch.inf).amax(dim=1)
    best_other = scores.masked_fill(own, -torch.inf).amax(dim=1)
    return float((best_own > best_other).float().mean())
