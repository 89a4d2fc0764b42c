"""Configuration of exports."""

from __future__ import annotations

from typing import Literal

from gmail_align.config import Config
from gmail_align.encoders.route import Route

Format = Literal["hf", "peft", "open_clip", "llava", "sentence-transformers", "onnx", "safetensors"]
"""``hf``: a plain ``CLIPModel``. ``peft``: an adapter with its head. ``open_clip``: its tensors
and their description. ``llava``: a vision tower. ``sentence-transformers``: a folder of its own.
``onnx``: the image tower, or a head of features, as one graph. ``safetensors``: the matrix of a
head of features."""


class ExportConfig(Config):
    """What of an encoder is written, and how."""

    format: Format
    """Whose code shall load it."""
    route: Route = Route.REAL
    """Which weights images go through; it is baked in."""
