"""The templates' environment: every value is escaped, and a missing one is an error."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, Final, NamedTuple

from gmail_align.extras import require
from gmail_align.report.numbers import count

_TEMPLATES: Final = Path(__file__).with_name("templates")


class Script(NamedTuple):
    """The page's script, and the hash by which the page's security policy knows it."""

    text: Any
    hash: str


def script() -> Script:
    """Return the script of every page; no other script runs there.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    markup: Any = require("markupsafe", "report").Markup
    text = (_TEMPLATES / "explore.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(markup(text), f"sha256-{digest}")


def environment() -> Any:
    """Return a jinja2 environment over the shipped templates.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja = require("jinja2", "report")
    made: Any = jinja.Environment(
        loader=jinja.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["count"] = count
    return made
