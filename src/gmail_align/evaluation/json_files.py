"""JSON files that users hand in, read with one clear sentence for what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from gmail_align.errors import DataError

LARGEST = 2 << 30
"""Bytes of the largest file read; the largest set of captions in use has an eighth of that."""


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte-order mark.

    Raises:
        DataError: it cannot be read as text, or is too large to be what is asked for.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise DataError(f"{path} has {size / 1e9:.1f} GB: files of at most 2 GB are read")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
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


def parse_lines(path: Path, text: str) -> list[Any]:
    """Parse JSON lines; blank ones are passed over.

    Raises:
        DataError: a line is not valid JSON.
    """
    return [parse_json(path, line) for line in text.split("\n") if line.strip()]


def is_lines(path: Path, text: str) -> bool:
    """Whether a file holds JSON lines: it says so by its name, or its first line is an object."""
    if path.suffix == ".jsonl":
        return True
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def parse_table(path: Path, text: str) -> Any:
    """Parse like :func:`parse_json`, and refuse a table that has a key twice.

    Raises:
        DataError: it is not valid JSON, or a key comes twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            twice = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
            raise DataError(f"{path} has {twice!r} more than once: keep one")
        return table

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
