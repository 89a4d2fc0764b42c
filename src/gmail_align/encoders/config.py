"""What an encoder is made of: its adapter, its heads and which weights its routes share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator, model_serializer

from gmail_align.config import Config

TextKind = Literal["softmax", "sigmoid", "long_short"]
"""A loss between images and texts: CLIP's softmax, SigLIP's sigmoid, Long-CLIP's two terms."""


class LoraSettings(Config):
    """Low-rank adaptation (GMAIL App. A: r = 4; Hu et al. 2022)."""

    rank: int = Field(default=4, ge=1)
    """Rank of each update."""
    alpha: float = Field(default=8.0, gt=0)
    """Scale of the update; it is multiplied by alpha / rank."""
    targets: str = r"vision_model\..*\.(q_proj|v_proj)"
    """Regular expression that a module's whole name inside the model has to match. Where the text
    tower is adapted too, an expression that names the vision tower alone means both."""
    towers: Literal["vision", "text", "both"] = "vision"
    """Which towers are adapted. With the text tower, texts are embedded at every step."""

    @field_validator("targets")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"it is no regular expression: {error}") from error
        return value

    @property
    def adapts_images(self) -> bool:
        """Whether the vision tower is adapted."""
        return self.towers != "text"

    @property
    def adapts_texts(self) -> bool:
        """Whether the text tower is adapted."""
        return self.towers != "vision"

    @model_serializer(mode="wrap")
    def _omit_default_towers(self, serialize: Callable[[Any], Any]) -> dict[str, Any]:
        """Omit ``towers`` when it has its default value, so that older encoders stay the same."""
        values: dict[str, Any] = serialize(self)
        if values.get("towers") == "vision":
            del values["towers"]
        return values


class EncoderLayout(Config):
    """What stands beside the frozen model (switches of GMAIL Tab. 6, 9 and 11)."""

    tune: Literal["lora", "full", "none"] = "lora"
    """What of the vision tower is trained: a LoRA adapter, a copy of the whole tower, or nothing
    (heads alone)."""
    trunk: Literal["shared", "separate", "frozen_real"] = "shared"
    """Whether real images go through what generated images train (``shared``, the paper's),
    through an adapter or copy of their own, or through the frozen tower."""
    head: Literal["linear", "affine", "residual", "mlp"] = "linear"
    """``linear``: W x. ``affine``: W x, and for generated images + b, b = 0 at first.
    ``residual``: W x + U gelu(V x), U = 0 at first. ``mlp``: W gelu(V x)."""
    head_init: Literal["clip", "identity", "random"] = "clip"
    """What W begins as: the model's own projection, the identity or noise."""
    train_heads: bool = True
    """Whether heads are trained at all."""
    norm: Literal["none", "batch", "layer"] = Field("none", exclude_if=lambda kind: kind == "none")
    """What normalises the trunk's output before a head reads it (Sec. 4.1 names batch
    normalisation and not its place). ``batch``: by the batch in training, by running statistics
    elsewhere. ``layer``: each image by itself. Its gain and shift begin by undoing it."""

    @property
    def starts_plain(self) -> bool:
        """Whether every route is the plain model, bit for bit, before training."""
        return self.head != "mlp" and self.head_init == "clip" and self.norm == "none"

    @property
    def adapters(self) -> tuple[str, ...]:
        """Adapters or copies of the tower: that of generated images, and that of real ones."""
        if self.tune == "none":
            return ()
        return (GENERATED, REAL) if self.trunk == "separate" else (GENERATED,)


GENERATED, REAL = "default", "real"
"""Names of adapters; the first is also that of real images where they share it."""


class EncoderCard(Config):
    """What ``config.json`` of an encoder folder says."""

    format: str = "gmail-align-encoder"
    """Marks the folder as one of ours."""
    base: str
    """The base model: a folder inside the encoder's, or ``OWNER/NAME@COMMIT`` on the hub."""
    base_fingerprint: str
    """Fingerprint of the base model's weights."""
    lora: LoraSettings | None
    """The adapter; None where nothing is adapted by LoRA."""
    dual_heads: bool = True
    """Whether real and generated images have heads of their own."""
    layout: EncoderLayout | None = None
    """Which weights are trained and shared; None for the default."""
    applied: bool
    """Whether the adapter and the heads are used; False when the guard kept the plain model."""
    best_step: int = 0
    """The training step that was kept."""
