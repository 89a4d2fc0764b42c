"""Configuration of optimisation, shared by everything that is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gmail_align.config import Config
from gmail_align.errors import ConfigError

_MOST_PASSES, _USUAL_PASSES = 1000, 100


class OptimConfig(Config):
    """AdamW with a learning-rate schedule (GMAIL App. A)."""

    steps: int = Field(default=50_000, ge=0)
    """Optimiser steps."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; vectors (biases, norms) and scalars are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running means of the gradient and of its square."""
    schedule: Literal["cosine", "cosine_restarts", "linear", "constant"] = "cosine_restarts"
    """Shape of the learning rate after warm-up."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    restart_every: int = Field(default=10_000, ge=1)
    """Length of the first cosine period under ``cosine_restarts`` (T_0)."""
    restart_growth: int = Field(default=1, ge=1)
    """How many times longer each further period is (T_mult)."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak rate that a cosine ends at."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest global norm of the gradient."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    evaluate_every: int = Field(default=500, ge=1)
    """Steps between evaluations of the guard, which also runs at step 0 and at the end."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many evaluations without a better score; 0 never stops early."""
    rate_shares: dict[str, float] | None = None
    """Share of the learning rate at which parameters are trained, by their names (layer-wise
    decay); None, or a name that is not in it: the whole rate."""

    def require_chosen(self, batch_size: int, examples: int, what: str) -> None:
        """Refuse the default number of steps where a small set would be read thousands of times.

        Raises:
            ConfigError: nobody chose the steps, and they are far too many; it proposes a number.
        """
        passes = self.steps * batch_size / max(examples, 1)
        if "steps" in self.model_fields_set or passes <= _MOST_PASSES:
            return
        fitting = max(1, round(_USUAL_PASSES * examples / batch_size))
        raise ConfigError(
            f"the default of {self.steps:,} steps reads these {examples} {what} {passes:,.0f} "
            f"times: give --set optim.steps={fitting}, which reads them {_USUAL_PASSES} times, or "
            f"--set optim.steps={self.steps} if you mean it"
        )
