"""Recall at one, as the guards of trainings count it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def first_is_own(scores: Float[Tensor, "q c"], own: Bool[Tensor, "q c"]) -> Bool[Tensor, " q"]:
    """Tell of each row whether its best column is one of its own; ties are misses.

    The mean is recall at one.
    """
    best_own = scores.masked_fill(~own, -torch.inf).amax(dim=1)
    best_other = scores.masked_fill(own, -torch.inf).amax(dim=1)
    return best_own > best_other
