"""The kinds of captioners. Nothing here imports torch, so that recipes can be read quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.config import CaptionerConfig
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.errors import ConfigError


@dataclass(frozen=True)
class CaptionerKind:
    """One kind of captioner."""

    config: type[CaptionerConfig]
    """Its settings."""
    package: str
    """Where ``model.CAPTIONER`` and ``training.TRAINING`` are."""


CAPTIONERS: Mapping[str, CaptionerKind] = {
    "clipcap": CaptionerKind(ClipCapConfig, "gmail_align.captioning.clipcap"),
    "ifcap": CaptionerKind(IFCapConfig, "gmail_align.captioning.ifcap"),
}
"""Every kind of captioner by name."""


def kind_of(config: CaptionerConfig) -> str:
    """Return the name of the kind that a configuration belongs to.

    Raises:
        ConfigError: it belongs to none.
    """
    for name, kind in CAPTIONERS.items():
        if type(config) is kind.config:
            return name
    raise ConfigError(f"{type(config).__name__} does not configure a captioner")
