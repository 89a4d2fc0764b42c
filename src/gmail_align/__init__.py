"""Generated images as a modality of their own: measure the gap, align encoders, use the result.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gmail_align.errors import GmailAlignError, UserError

if TYPE_CHECKING:
    from gmail_align.alignment.losses import alignment_loss
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.encoders.route import Route

__version__ = "0.1.0"

__all__ = [
    "GmailEncoder",
    "Route",
    "alignment_loss",
    "GmailAlignError",
    "UserError",
    "__version__",
]

_HOMES = {
    "GmailEncoder": "gmail_align.encoders.encoder",
    "Route": "gmail_align.encoders.route",
    "alignment_loss": "gmail_align.alignment.losses",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
