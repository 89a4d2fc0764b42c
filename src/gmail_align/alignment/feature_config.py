"""Configuration of the alignment of features, without the encoder that they come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gmail_align.config import Config
from gmail_align.training.config import OptimConfig


class FeatureWeights(Config):
    """Weight of each loss term; 0 turns it off."""

    align: float = Field(default=1.0, ge=0)
    """Eq. 1: generated images against the real images of their pairs or classes."""
    text_generated: float = Field(default=1.0, ge=0)
    """Contrastive loss between generated images and their texts, where texts are given."""
    distill_generated: float = Field(default=0.0, ge=0)
    """1 - cosine between generated images and the real images of their pairs or classes."""
    norm: float = Field(default=0.0, ge=0)
    """How far norms of generated features are from the mean norm of real ones, relatively."""
    hold: float = Field(default=1.0, ge=0)
    """Mean square of what the head adds to its start, in units of the real features' variance.
    It keeps the head gentle: without it, training soon harms what it is meant to help."""


class FeatureOptim(OptimConfig):
    """Few steps at a constant rate: a head of features is small, and long training harms."""

    steps: int = Field(default=100, ge=0)
    """Optimiser steps."""
    lr: float = Field(default=0.02, gt=0)
    """Learning rate."""
    schedule: Literal["cosine", "cosine_restarts", "linear", "constant"] = "constant"
    """Shape of the learning rate after warm-up."""
    evaluate_every: int = Field(default=50, ge=1)
    """Steps between evaluations of the guard, which may keep any of them."""


class FeatureAlignConfig(Config):
    """Alignment of generated features to real ones of the same encoder (GMAIL Eq. 1)."""

    head: Literal["low_rank", "linear", "mlp", "none"] = "low_rank"
    """What is learnt on top of the start: a residual of low rank, a full matrix, or an MLP with one
    hidden layer. ``none`` learns nothing, and the start itself competes."""
    rank: int = Field(default=8, ge=1)
    """Rank of the residual, or width of the MLP."""
    start: Literal["identity", "shift", "shift_scale", "coral"] = "shift"
    """The training-free map that the head starts from."""
    components: int = Field(default=256, ge=0)
    """Everything is learnt on this many principal components of both sides; what is left of a
    feature is shifted at most. 0: all of them."""
    weights: FeatureWeights = FeatureWeights()
    """Weight of each loss term."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature of Eq. 1 and of the text term."""
    positives: Literal["mask", "sum"] = "mask"
    """How generated images of one class or one real image are treated in a batch: ``mask`` drops
    them from the denominator, ``sum`` counts them as positives."""
    direction: Literal["g2r", "r2g", "both"] = "g2r"
    """Which side gives the rows of Eq. 1; ``g2r`` is the paper's."""
    batch_size: int = Field(default=256, ge=2)
    """Generated images a step."""
    optim: FeatureOptim = FeatureOptim()
    """Optimisation; the guard may keep any step that is evaluated."""
    select: Literal["transfer", "align"] = "transfer"
    """What the guard compares on held-out real images. ``transfer`` learns from generated images
    and tests on real ones: with classes a probe, with pairs retrieval both ways. ``align`` is the
    loss of Eq. 1."""
    judge: Literal["auto", "images", "classes"] = "auto"
    """What is held out in turn: real images, or whole classes. ``auto``: classes where generated
    images have one that no real image has, for then the head has to carry over."""
    folds: int = Field(default=5, ge=2)
    """Parts of the real images that are held out in turn."""
    judge_limit: int = Field(default=4000, ge=10)
    """Most images of each side that the guard looks at in a fold."""
