"""Which weights of an encoder are trained, and which of them its routes share."""

from __future__ import annotations

from typing import Literal

from gmail_align.config import Config


class EncoderLayout(Config):
    """What stands beside the frozen model (switches of GMAIL Tab. 6, 11 and 12)."""

    tune: Literal["lora", "full", "none"] = "lora"
    """What of the vision tower is trained: a LoRA adapter, a copy of the whole tower, or nothing
    (heads alone)."""
    trunk: Literal["shared", "separate", "frozen_real"] = "shared"
    """Whether real images go through what generated images train (``shared``, the paper's),
    through an adapter or copy of their own, or through the frozen tower."""
    head: Literal["linear", "residual", "mlp"] = "linear"
    """``linear``: W x. ``residual``: W x + U gelu(V x), U = 0 at first. ``mlp``: W gelu(V x)."""
    head_init: Literal["clip", "identity", "random"] = "clip"
    """What W begins as: the model's own projection, the identity or noise."""
    train_heads: bool = True
    """Whether heads are trained at all."""

    @property
    def starts_plain(self) -> bool:
        """Whether every route is the plain model before training."""
        return self.head != "mlp" and self.head_init == "clip"

    @property
    def adapters(self) -> tuple[str, ...]:
        """Adapters or copies of the tower: that of generated images, and that of real ones."""
        if self.tune == "none":
            return ()
        return (GENERATED, REAL) if self.trunk == "separate" else (GENERATED,)


GENERATED, REAL = "default", "real"
"""Names of adapters; the first is also that of real images where they share it."""
