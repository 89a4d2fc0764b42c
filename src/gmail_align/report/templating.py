"""The templates' environment: every value is escaped, and a missing one is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from gmail_align.extras import require
from gmail_align.report.numbers import count

_TEMPLATES: Final = Path(__file__).with_name("templates")


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
