"""JSON files that users hand in, read with one clear sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gmail_align.errors import DataError


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte-order mark.

    Raises:
        DataError: it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def parse_json(path: Path, text: str) -> Any:
    """Parse what :func:`read_text` found in ``path``.

    Raises:
        DataError: it is not valid JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
