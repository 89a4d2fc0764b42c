"""Configuration of ClipCap."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from gmail_align.config import Config
from gmail_align.training.config import OptimConfig


class ClipCapOptim(OptimConfig):
    """ClipCap's published optimisation: 10 epochs of COCO (566,747 captions) in batches of 40.

    One departure: gradients are clipped at ``clip_norm``, where ClipCap does not clip.
    """

    steps: int = Field(default=141_680, ge=0)
    """Optimiser steps."""
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate, of the mapper and of GPT-2."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    schedule: Literal["cosine", "cosine_restarts", "linear", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup: int = Field(default=5_000, ge=0)
    """Steps of linear warm-up."""
    checkpoint_every: int = Field(default=5_000, ge=1)
    """Steps between checkpoints."""
    evaluate_every: int = Field(default=5_000, ge=1)
    """Steps between evaluations of the validation loss."""


class ClipCapConfig(Config):
    """ClipCap, the variant with an MLP mapper and GPT-2 trained along (Mokady et al. 2021)."""

    prefix_length: int = Field(default=10, ge=1)
    """Tokens that the mapper makes of one image feature (k)."""
    mapper: Literal["mlp"] = "mlp"
    """Shape of the mapper: Linear(d, k*h/2), Tanh, Linear(k*h/2, k*h)."""
    normalise: bool = True
    """L2-normalise the features, in training and in prediction alike."""
    max_tokens: int = Field(default=67, ge=2)
    """Longest caption in tokens, its end-of-text token included, in training and in prediction."""
    beam: int = Field(default=5, ge=1)
    """Beams of the search that predicts a caption; 1 is greedy."""
    batch_size: int = Field(default=40, ge=1)
    """Captions in a training step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass in training; weights and the loss stay in float32."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``; no part of what makes two runs the same."""
    optim: ClipCapOptim = ClipCapOptim()
    """Steps, rates and intervals."""

    @field_validator("optim", mode="before")
    @classmethod
    def _any_optim(cls, value: object) -> object:
        """Take a plain ``OptimConfig`` as it is."""
        return value.model_dump() if isinstance(value, OptimConfig) else value
