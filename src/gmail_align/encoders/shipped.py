"""The models that come with the package. Nothing here imports torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

SHIPPED: Final = "tabletop"
"""Name of the shipped models, wherever a model is named."""


def shipped_models() -> Path:
    """Return the folder of the shipped models."""
    return Path(str(resources.files("gmail_align.tabletop"))) / "weights"


def model_path(value: str | Path, part: str) -> Path:
    """Resolve a model setting: ``tabletop`` is the shipped ``part``, ``tabletop/NAME`` another."""
    name, slash, other = str(value).partition("/")
    shipped = shipped_models() / (other if slash else part)
    return shipped if name == SHIPPED and shipped.is_dir() else Path(value)
