"""What something was made from, as text: canonical JSON, its fingerprint, and differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_CANONICAL: Any = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False}


def canonical_json(value: Any) -> str:
    """Serialise ``value`` so that equal values give equal text."""
    return json.dumps(value, **_CANONICAL)


def fingerprint(value: Any) -> str:
    """Return 16 hex digits of the sha256 of ``value`` as canonical JSON.

    A long sequence that is no list, such as names in a file, counts as a list and is not held.
    """
    digest = hashlib.sha256()
    for part in _STREAM.iterencode(value):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


class _Streamed(list[Any]):
    """A sequence that JSON writes as a list, one item after the other."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __bool__(self) -> bool:
        return len(self._items) > 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


def _streamed(value: Any) -> Any:
    if isinstance(value, Sequence):
        return _Streamed(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_STREAM = json.JSONEncoder(default=_streamed, **_CANONICAL)


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Name the first field in which two JSON values differ, with both values; None when equal.

    An absent key counts as null, so a field that is added later with that default is no difference.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if inner:
                return inner
        return None
    return None if old == new else f"{path} was {old!r} and is now {new!r}"
