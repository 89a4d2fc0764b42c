"""Places and settings as the public functions take them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gmail_align.artifacts import Artifact
from gmail_align.artifacts import load as load_artifact
from gmail_align.config import Config, build, merge
from gmail_align.encoders.shipped import model_path

if TYPE_CHECKING:
    from gmail_align.encoders.encoder import GmailEncoder

ConfigT = TypeVar("ConfigT", bound=Config)
Place = str | os.PathLike[str] | Artifact
"""A folder or file, by its path or already opened."""


def load(folder: Place, kind: str | None = None) -> Artifact:
    """Open an artifact.

    Args:
        folder: Its folder.
        kind: What it has to hold, such as ``images``; anything when None.

    Raises:
        ArtifactError: there is no finished artifact, or it holds something else.

    Example:
        >>> load("world").kind
        'world'
    """
    return load_artifact(folder.folder if isinstance(folder, Artifact) else Path(folder), kind)


def config_of(
    stage: type[ConfigT], preset: str | None, settings: Mapping[str, Any] | None
) -> ConfigT:
    """Build a configuration from a preset and dotted or nested keys."""
    keys: Mapping[str, Any] = {} if preset is None else stage.preset_keys(preset)
    for name, value in (settings or {}).items():
        nested = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        keys = merge(keys, nested)
    return build(stage, keys, "settings")


def place_of(value: Place) -> Path | Artifact:
    """Return an artifact as it is, and anything else as a path."""
    return value if isinstance(value, Artifact) else Path(value)


def folder_of(value: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of a result; None keeps nothing."""
    return None if value is None else Path(value)


def open_encoder(name: str, device: str = "auto") -> GmailEncoder:
    """Load an encoder by its folder or name onto a device; ``auto`` takes a GPU if there is one."""
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.runtime import resolve_device

    return GmailEncoder.from_pretrained(model_path(name, "clip")).to(resolve_device(device))
