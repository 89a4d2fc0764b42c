"""The captioners: one line each. A new captioner is a package and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from gmail_align.errors import ConfigError

if TYPE_CHECKING:
    from gmail_align.captioning.config import CaptionerConfig
    from gmail_align.captioning.inputs import CaptionerData


@dataclass(frozen=True)
class CaptionerKind:
    """One kind of captioner."""

    package: str
    """Where ``config.CONFIG``, ``config.inputs``, ``model.CAPTIONER`` and ``training.TRAINING``
    are. Its ``config`` does not import torch, so that recipes and help are read quickly."""
    help: str
    """One line for ``gmail-align train --help``."""
    extra: str | None = None
    """The optional dependencies that it needs."""

    @property
    def config(self) -> type[CaptionerConfig]:
        """Its settings."""
        config: type[CaptionerConfig] = import_module(f"{self.package}.config").CONFIG
        return config

    @property
    def inputs(self) -> Callable[..., CaptionerData]:
        """Opens what it is trained on; its parameters are the options of its training."""
        inputs: Callable[..., CaptionerData] = import_module(f"{self.package}.config").inputs
        return inputs


CAPTIONERS: Mapping[str, CaptionerKind] = {
    "clipcap": CaptionerKind("gmail_align.captioning.clipcap", "Train a ClipCap captioner."),
    "ifcap": CaptionerKind(
        "gmail_align.captioning.ifcap", "Train an IFCap captioner on captions.", "ifcap"
    ),
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
