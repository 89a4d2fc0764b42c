"""Configuration of conversions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gmail_align.config import Config

Activation = Literal["quick_gelu", "gelu"]
"""OpenAI's models were trained with the former, an approximation; most of open_clip's with GELU."""


class ConvertConfig(Config):
    """How other people's weights become a folder in Hugging Face's format."""

    activation: Activation | None = None
    """The activation that the model was trained with; None where the file itself tells."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of the image tower, which weights do not tell. A ViT in timm's naming needs
    it; other towers have 64 channels a head, unless a description beside the file says otherwise.
    """
    stretch: int | None = Field(default=None, ge=22)
    """Text positions to stretch the table to, as Long-CLIP does (248); None leaves it."""
