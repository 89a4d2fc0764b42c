"""Captions that lie beside images: in one table of the folder, or in a file of each image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from gmail_align.errors import DataError
from gmail_align.importing.class_folders import Read, opened

TABLES: Final = (
    *("captions.jsonl", "metadata.jsonl", "prompts.jsonl"),
    *("captions.json", "metadata.json", "prompts.json"),
)
"""Files at the top of a folder that may say the captions; the first that is there does."""
_NAMES: Final = ("file_name", "filename", "image", "path", "name", "image_id", "id")
_TEXTS: Final = ("text", "caption", "prompt", "captions", "prompts")
_LONGEST: Final = 20_000
"""Bytes of the longest file beside an image that is taken for its caption."""


def captions_beside(source: Path, paths: Sequence[str]) -> dict[str, str]:
    """Return path of an image -> its caption, of those images that have one.

    A table is a list of records, JSON lines, or an object of image to caption; an image is known by
    its path, its file's name, or either without the ending. Without a table, ``cat.txt`` or
    ``cat.json`` beside ``cat.jpg`` holds its caption. Of several captions the first is taken.

    Args:
        source: Folder or zip of images.
        paths: The images that are asked for.

    Raises:
        DataError: a table is damaged.
    """
    with opened(source) as found:
        table = next((name for name in TABLES if name in found.names), None)
        if table is not None:
            return _of_table(_rows(source / table, found.read(table)), paths)
        texts = {path: _of_file(path, found.names, found.read) for path in paths}
    return {path: text for path, text in texts.items() if text}


def _rows(path: Path, data: bytes) -> list[tuple[str, str]]:
    """Return (image, caption) of a table; records without either are passed over."""
    try:
        text = data.decode("utf-8-sig")
        lines = path.suffix == ".jsonl"
        body = [json.loads(one) for one in text.split("\n") if one.strip()] if lines else None
        body = json.loads(text) if body is None else body
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON of captions: {error}") from error
    if isinstance(body, dict):
        body = [{"image": name, "captions": said} for name, said in body.items()]
    records: Iterable[Any] = body if isinstance(body, list) else []
    rows = [
        (_first(record, _NAMES), _first(record, _TEXTS))
        for record in records
        if isinstance(record, dict)
    ]
    return [(name, said) for name, said in rows if name and said]


def _of_table(rows: Iterable[tuple[str, str]], paths: Sequence[str]) -> dict[str, str]:
    said: dict[str, str] = {}
    for name, text in rows:
        said.setdefault(name, text)
    found = {}
    for path in paths:
        place = PurePosixPath(path)
        names = (path, str(place.with_suffix("")), place.name, place.stem)
        own = next((said[name] for name in names if name in said), None)
        if own is not None:
            found[path] = own
    return found


def _of_file(path: str, names: Iterable[str], read: Read) -> str:
    """Return what stands in the file beside an image; nothing where there is none."""
    for ending in (".txt", ".json"):
        beside = str(PurePosixPath(path).with_suffix(ending))
        if beside not in names:
            continue
        data = read(beside)
        try:
            text = data.decode("utf-8-sig") if len(data) <= _LONGEST else ""
            said = _first(json.loads(text), _TEXTS) if ending == ".json" else text
        except (ValueError, RecursionError):
            continue
        if said.strip():
            return " ".join(said.split())
    return ""


def _first(record: Any, keys: Iterable[str]) -> str:
    """Return the first of ``keys`` that a record has, of a list its first text."""
    if not isinstance(record, Mapping):
        return ""
    for key in keys:
        value = record.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""
