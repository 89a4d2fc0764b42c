"""Configuration of the adapter and the heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_serializer

from gmail_align.config import Config
from gmail_align.encoders.layout import EncoderLayout


class LoraSettings(Config):
    """Low-rank adaptation (GMAIL App. A: r = 4; Hu et al. 2022)."""

    rank: int = Field(default=4, ge=1)
    """Rank of each update."""
    alpha: float = Field(default=8.0, gt=0)
    """Scale of the update; it is multiplied by alpha / rank."""
    targets: str = r"vision_model\..*\.(q_proj|v_proj)"
    """Regular expression that a module's whole name inside the CLIP model has to match. One that
    names the vision tower alone means the text tower's modules of these names too where that is
    adapted."""
    towers: Literal["vision", "text", "both"] = "vision"
    """Which towers are adapted. When the text tower moves, texts are embedded at every step."""

    @property
    def adapts_images(self) -> bool:
        """Whether the vision tower is adapted."""
        return self.towers != "text"

    @property
    def adapts_texts(self) -> bool:
        """Whether the text tower is adapted."""
        return self.towers != "vision"

    @model_serializer(mode="wrap")
    def _unsaid_by_default(self, serialize: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave ``towers`` out where it is the default: encoders made before it are the same."""
        said: dict[str, Any] = serialize(self)
        if said.get("towers") == "vision":
            del said["towers"]
        return said


class EncoderCard(Config):
    """What ``config.json`` of an encoder folder says."""

    format: str = "gmail-align-encoder"
    """Marks the folder as one of ours."""
    base: str
    """The CLIP model underneath: a path inside the folder, a path or a hub id."""
    base_fingerprint: str
    """Fingerprint of the base model's weights."""
    lora: LoraSettings | None
    """The adapter; None for a plain CLIP."""
    dual_heads: bool = True
    """Whether real and generated images have heads of their own."""
    layout: EncoderLayout | None = None
    """Which weights are trained and shared; None for the default."""
    applied: bool
    """Whether the adapter and the heads are used; False when the guard kept the plain CLIP."""
    best_step: int = 0
    """The training step that was kept."""
