"""Places and settings as the public functions take them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
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


_OPENERS = {
    "encoder": "gmail_align.encoders.encoder:GmailEncoder.from_pretrained",
    "captioner": "gmail_align.captioning.pretrained:Captioner.from_pretrained",
    "result": "gmail_align.results:read_result",
    "features": "gmail_align.features.store:open_features",
    "images": "gmail_align.data.images:ImageStore",
}
"""Kind of an artifact -> what opens it."""
ModelPlace = str | os.PathLike[str] | Artifact
"""A model: its folder, its hub id, ``tabletop``, or an artifact that holds one."""


def load(folder: Place) -> Any:
    """Open what an artifact holds, ready to use.

    An encoder is a :class:`GmailEncoder`, a captioner a :class:`Captioner`. Results, features and
    images are a ``Result``, ``Features`` (``.ids``, ``.array``) and an ``ImageStore`` (``.ids``).
    Anything else is an ``Artifact``, whose folder, counts and manifest can be read.

    Args:
        folder: The artifact, or its folder.

    Raises:
        ArtifactError: a finished artifact is missing, or it is damaged.

    Example:
        >>> load("world")
        Artifact(world in world: 32 images)
        >>> load("encoder").encode_texts(["A red ball on the grass."]).shape
        torch.Size([1, 128])
        >>> load("features/real").array.shape, len(load("real/images").ids)
        (torch.Size([24, 128]), 24)
    """
    artifact = artifact_of(folder)
    if artifact.kind in _OPENERS:
        opener: Callable[[Any], Any] = resolve_name(_OPENERS[artifact.kind])
        return opener(artifact.folder if artifact.kind in ("encoder", "captioner") else artifact)
    return artifact


def artifact_of(place: Place, kind: str | None = None) -> Artifact:
    """Return the artifact of a folder, which holds ``kind`` if that is given.

    Raises:
        ArtifactError: a finished artifact is missing, or it holds something else.
    """
    return load_artifact(place.folder if isinstance(place, Artifact) else Path(place), kind)


def model_of(model: ModelPlace, part: str) -> Path:
    """Return where a model is; ``tabletop`` is the shipped ``part``."""
    return model.folder if isinstance(model, Artifact) else model_path(os.fspath(model), part)


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


def open_encoder(name: ModelPlace, device: str = "auto") -> GmailEncoder:
    """Load an encoder by its folder or name onto a device; ``auto`` takes a GPU if there is one."""
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.runtime import resolve_device

    return GmailEncoder.from_pretrained(model_of(name, "clip")).to(resolve_device(device))
