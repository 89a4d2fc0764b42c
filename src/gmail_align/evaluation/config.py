"""Configuration of fine-tuning for classification."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from gmail_align.config import Config
from gmail_align.training.config import OptimConfig

_RATE_FOR = 256
"""Images a step that ``base_lr`` is stated for."""


class FinetuneConfig(Config):
    """Fine-tuning of the whole vision tower, as SynCLR's (Tian et al. 2023, appendix B.5)."""

    epochs: float = Field(default=100, gt=0)
    """Passes over the training images."""
    warmup_epochs: float = Field(default=20, ge=0)
    """Passes in which the learning rate climbs."""
    batch_size: int = Field(default=256, ge=1)
    """Images a step."""
    base_lr: float = Field(default=5e-5, gt=0)
    """Peak learning rate for 256 images a step; it grows with the batch."""
    layer_decay: float = Field(default=0.65, gt=0, le=1)
    """Learning rate of a layer, as a share of the rate of the layer above it."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay; vectors are never decayed."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each label that is spread over all classes."""
    mixup: float = Field(default=0.8, ge=0)
    """Mixup: both parameters of its beta distribution; 0 turns it off."""
    cutmix: float = Field(default=1.0, ge=0)
    """CutMix: both parameters of its beta distribution; 0 turns it off. If mixup is on too, a coin
    is tossed for every batch."""
    least_crop: float | None = Field(default=0.08, gt=0, le=1)
    """Smallest share of an image that a random crop keeps; crops are mirrored half of the time.
    None turns both off."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many epochs without a better score on validation images; 0 never does."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the vision tower."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    @model_validator(mode="after")
    def _check(self) -> FinetuneConfig:
        """Refuse a warm-up that never ends."""
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs:g}) have to be fewer than epochs "
                f"({self.epochs:g})"
            )
        return self

    def optim(self, images: int) -> OptimConfig:
        """Return the optimisation over so many training images; the guard runs once an epoch."""
        epoch = images / self.batch_size
        each = max(1, round(epoch))
        return OptimConfig(
            steps=max(1, math.ceil(self.epochs * epoch)),
            lr=self.base_lr * self.batch_size / _RATE_FOR,
            weight_decay=self.weight_decay,
            schedule="cosine",
            warmup=math.floor(self.warmup_epochs * epoch),
            checkpoint_every=each,
            evaluate_every=each,
            patience=self.patience,
        )
