"""Foreign descriptions of models: allow-lists, where a key is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from gmail_align.config import Config, build
from gmail_align.errors import ConfigError, ModelError

Description = TypeVar("Description", bound=Config)


def honoured(kind: type[Description], described: Mapping[str, Any], path: Path) -> Description:
    """Return what a foreign file says of a model.

    Raises:
        ModelError: it says something that cannot be honoured.
    """
    try:
        return build(kind, described, str(path))
    except ConfigError as error:
        raise ModelError(f"this model cannot be converted: {error}") from error
