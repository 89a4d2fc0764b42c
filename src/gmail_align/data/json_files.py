"""JSON files that users hand in, read with one clear sentence for what is wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from gmail_align.artifacts import sha256_file
from gmail_align.errors import DataError, damage_explained

LARGEST = 2 << 30
"""Bytes of the largest file that is read: eight times the largest set of captions in use."""
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Any:
    """Read a JSON file, or JSON lines as a list of their values.

    A file holds JSON lines if its name ends in ``.jsonl`` or its first line is an object by itself.

    Raises:
        DataError: the file cannot be read as text, is too large, is not valid JSON, has a key twice
            in one object, or holds half a character.
    """
    text = _read_text(path)
    if _is_lines(path, text):
        # Not splitlines: U+2028 may stand inside a JSON string.
        return [_parse(path, line) for line in text.split("\n") if line.strip()]
    return _parse(path, text)


def file_fingerprint(path: Path) -> str:
    """Return 16 hex digits of the sha256 of a file's bytes.

    Raises:
        DataError: the file cannot be read.
    """
    with damage_explained(path):
        return sha256_file(path)[:16]


def first_of(record: Any, keys: tuple[str, ...]) -> Any:
    """Return the value of the first of ``keys`` that a record has; None if it has none of them."""
    if not isinstance(record, dict):
        return None
    return next((record[key] for key in keys if key in record), None)


def _read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte-order mark."""
    with damage_explained(path):
        size = path.stat().st_size
        if size > LARGEST:
            raise DataError(f"{path} has {size / 1e9:.1f} GB: files of at most 2 GB are read")
        return path.read_text(encoding="utf-8-sig")


def _is_lines(path: Path, text: str) -> bool:
    if path.suffix == ".jsonl":
        return True
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _parse(path: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise DataError(f"{path} has the key {twice!r} more than once: keep one")
        return table

    try:
        value = json.loads(text, object_pairs_hook=once)
        if _HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
        return value
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path} holds half a character (U+{ord(error.object[error.start]):04X}): remove it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
