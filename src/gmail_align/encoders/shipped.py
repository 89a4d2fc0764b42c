"""The models that come with the package. Nothing here imports torch."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Final

SHIPPED: Final = "tabletop"
"""Name of the shipped models, wherever a model is named."""


def shipped_models() -> Path:
    """Return the folder of the shipped models."""
    return Path(str(resources.files("gmail_align.tabletop"))) / "weights"


def model_path(value: str | Path, part: str) -> Path:
    """Resolve a model setting: ``tabletop`` is the shipped ``part``, ``tabletop/NAME`` another.

    A folder that is marked as one (``./OWNER/NAME``, ``OWNER/NAME/``) and does not exist is
    absolute in what is returned: without its mark it would look like the name of a model on the
    hub.
    """
    text, path = str(value), Path(value)
    name, slash, other = text.partition("/")
    shipped = shipped_models() / (other if slash else part)
    if name == SHIPPED and os.path.isdir(shipped):
        return shipped
    marked = text.startswith("./") or text.endswith("/")
    return path.absolute() if marked and not os.path.isdir(path) else path
