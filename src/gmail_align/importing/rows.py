"""The reading layer of tables: Parquet, CSV, TSV, JSON, JSON lines, and plain lines of text."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from gmail_align.errors import DataError
from gmail_align.importing.parquet import parquet_file, parquet_values, without_bytes
from gmail_align.importing.streams import (
    MAX_LINE,
    Inside,
    Lines,
    TextFile,
    is_json_lines,
    json_items,
    json_keys,
    json_lines,
    json_pairs,
    opened,
    text_lines,
)

TABLES: Final = (
    *(".parquet", ".jsonl", ".ndjson", ".csv", ".tsv"),
    *(".jsonl.gz", ".ndjson.gz", ".csv.gz", ".tsv.gz"),
)
"""Suffixes of files that are tables for sure; .json and .txt may be something else."""

_SIGNS: Final = (",", ";", "|", "\t")
_SEPARATOR: Final = re.compile("sep=(.)", re.IGNORECASE)
_LONGEST_RECORD: Final = 200  # lines of one quoted CSV record
_COLUMNS: Final = frozenset(
    f"{name}{end}"
    for name in ("image", "caption", "text", "sentence", "prompt", "url", "annotation", "row")
    for end in ("", "s")
) | {"data", "columns", "index"}
"""Keys of a JSON object that are no names of images."""
_TEXTS: Final = re.compile(r"""(?s)\[\s*['"].*['"]\s*,?\s*\]\Z""")
"""What a text that holds a list of texts begins and ends with."""


def table_rows(path: TextFile, columns: Sequence[str] = ()) -> Iterator[tuple[int, Any]]:
    """Yield number (from 0) and values (a dict, or one text) of every row of a table.

    A line of plain text, and a text in a JSON list, is a row that is one text.
    Columns of Parquet that hold bytes are left out (their ``path`` stays). A row that cannot be
    read yields a DataError in the place of its values.

    Raises:
        DataError: the file is missing, damaged, or lacks one of ``columns``.
    """
    name = path.name.lower().removesuffix(".gz")
    kind = name.rpartition(".")[2]
    if kind == "parquet":
        if isinstance(path, Inside):
            raise DataError(f"{path} is Parquet inside an archive: unpack it")
        yield from _parquet_rows(path, columns)
    elif kind in ("csv", "tsv"):
        yield from _csv_rows(path, kind, columns)
    elif kind == "json":
        yield from enumerate(_row(value) for value in _json_values(path, columns))
    elif kind in ("jsonl", "ndjson"):
        yield from ((number - 1, _row(value)) for number, value in json_lines(path))
    elif kind == "txt":
        for number, text in text_lines(path):
            if text:
                yield number - 1, text
    else:
        with opened(path):  # it names what is packed
            pass
        raise DataError(
            f"{path} is neither .parquet nor .json, .jsonl, .csv, .tsv or .txt: name it by its "
            "format"
        )


def _row(value: Any) -> Any:
    return (
        value if isinstance(value, dict | str | DataError) else DataError("is not a row of columns")
    )


def _json_values(path: TextFile, columns: Sequence[str]) -> Iterator[Any]:
    """Yield a list's entries, or the objects of lines; of image -> captions, one row an image.

    An object that has the columns is a row itself, or a list or object for each column. The list
    may also be a value of the file's object.
    """
    if is_json_lines(path):
        yield from (value for _, value in json_lines(path))
        return
    keys = json_keys(path)
    if keys is None:
        yield from json_items(path)
        return
    if columns and set(columns) <= keys.keys():
        yield from _by_rows(path, dict(json_pairs(path)))
        return
    for key in (key for key, sign in keys.items() if sign == "["):
        first = next(json_items(path, key), None)
        if columns and isinstance(first, dict) and set(columns) <= first.keys():
            yield from json_items(path, key)
            return
    if known := sorted(_COLUMNS.intersection(keys)):
        raise DataError(f"{path} has {known[0]!r}, but not {' and '.join(columns)}: name columns")
    for name, value in json_pairs(path):
        if not isinstance(value, str | list):
            raise DataError(f"{path} is json, but no list of rows: give a table")
        yield {"image": name, "caption": value}


def _by_rows(path: TextFile, columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of an object: itself, or those of the lists or objects that are its columns.

    Raises:
        DataError: its columns are not of one length.
    """
    values = list(columns.values())
    if all(isinstance(one, dict) for one in values):
        wide = [list(one) for one in values]
        values = [list(one.values()) for one in values]
    elif all(isinstance(one, list) for one in values):
        wide = [list(range(len(one))) for one in values]
    else:
        yield columns
        return
    if any(one != wide[0] for one in wide):
        raise DataError(f"{path} has columns of different rows: write it again")
    for row in zip(*values, strict=True):
        yield dict(zip(columns, row, strict=True))


def _csv_rows(path: TextFile, kind: str, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    with opened(path) as file:
        lines = Lines(file)
        head = _head(lines)
        given = _SEPARATOR.fullmatch(head)  # as Excel writes it
        head = _head(lines) if given else head
        signs = (given[1],) if given else ("\t",) if kind == "tsv" else _SIGNS
        sign, names = _header(head, signs, columns)
        require_columns(path, columns, names)
        for number, record in enumerate(_records(lines, sign, len(names))):
            if isinstance(record, DataError):
                yield number, record
            else:
                yield number, dict(zip(names, record, strict=True))


def _head(lines: Lines) -> str:
    """Read the line of column names; a name in quotation marks may go over several lines."""
    held = [lines.read()]
    while b"".join(held).count(b'"') % 2 and len(held) < _LONGEST_RECORD and (more := lines.read()):
        held.append(more)
    if b"".join(held).count(b'"') % 2:
        lines.give_back(held[1:])
        del held[1:]
    return b"".join(held).decode("utf-8", "replace").rstrip("\r\n")


def _header(head: str, signs: Sequence[str], columns: Sequence[str]) -> tuple[str, list[str]]:
    """Return the sign between fields and the columns: the sign that gives the columns asked for."""
    best = (signs[0], [""])
    for sign in signs:
        names = [name.strip() for name in next(csv.reader(io.StringIO(head), delimiter=sign), [""])]
        if columns and set(columns) <= set(names):
            return sign, names
        if len(names) > len(best[1]):
            best = (sign, names)
    return best[0], best[1] if best[1] != [""] else [head.strip()]


def _records(lines: Lines, sign: str, width: int) -> Iterator[list[str] | DataError]:
    """Yield the fields of every record; a quoted field may go over several lines.

    A quotation mark that does not close would swallow everything behind it. Such a line is read as
    it stands where that gives the right number of fields.
    """
    while line := lines.read():
        if not line.strip(b"\r\n"):
            continue
        fields, record = _over_lines(line, lines, sign)
        try:
            text = record.decode("utf-8")
        except UnicodeDecodeError:
            yield DataError("is not UTF-8")
            continue
        if fields is None:
            fields = [_unquoted(one) for one in text.rstrip("\r\n").split(sign)]
        if len(fields) == width:
            yield fields
        else:
            yield DataError(f"has {len(fields)} fields, and the table has {width} columns")


def _over_lines(line: bytes, lines: Lines, sign: str) -> tuple[list[str] | None, bytes]:
    """Split one record, reading on until its quotation marks close; None where they never do.

    In a TSV, quotation marks are part of the text, as its writers do not double them.

    Returns:
        The fields, and the lines that they were read from.
    """
    if sign == "\t":
        return None, line
    held, record = list[bytes](), line
    while True:
        try:
            text = record.decode("utf-8", "replace")
            return next(_strict([text], sign)), record
        except csv.Error as error:
            more = b""
            if (
                "unexpected end" in str(error)
                and len(held) < _LONGEST_RECORD
                and len(record) < MAX_LINE
            ):
                more = lines.read()
            if not more:
                lines.give_back(held)
                return None, line
            held.append(more)
            record += more


def _strict(texts: Iterable[str], sign: str) -> Iterator[list[str]]:
    return csv.reader(texts, delimiter=sign, strict=True, skipinitialspace=True)


def _unquoted(field: str) -> str:
    """Take the quotation marks off a field that is quoted as a whole."""
    inner = field[1:-1]
    whole = len(field) > 1 and field[0] == field[-1] == '"'
    return inner.replace('""', '"') if whole and '"' not in inner.replace('""', "") else field


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    with parquet_file(path) as file:
        kinds = {field.name: field.type for field in file.schema_arrow}
        require_columns(path, columns, file.schema_arrow.names)
        wanted = [part for name, kind in kinds.items() for part in without_bytes(name, kind)]
        yield from enumerate(parquet_values(path, file, wanted, 1024))


def require_columns(path: TextFile, wanted: Sequence[str], have: Sequence[str]) -> None:
    """Check that a table has the columns; ``sentences.raw`` is a part of the column ``sentences``.

    Raises:
        DataError: it lacks one.
    """
    for name in wanted:
        if name not in have and name.partition(".")[0].removesuffix("[]") not in have:
            raise DataError(f"{path} has no column {name!r}: it has {', '.join(have)}")
        if have.count(name) > 1:
            raise DataError(f"{path} has {have.count(name)} columns named {name!r}: rename one")


def value_of(values: dict[str, Any], column: str) -> Any:
    """Return a column's value; ``sentences.raw`` is the field ``raw`` of each of ``sentences``."""
    if column in values:
        return values[column]
    first, *rest = column.replace("[]", "").replace(".list.element", "").split(".")
    value = values.get(first)
    for key in rest:
        if isinstance(value, list):
            value = [one.get(key) if isinstance(one, dict) else None for one in value]
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def listed_texts(value: Any) -> list[Any]:
    """Return the entries of a list, or of a text that holds a list of texts; else the value alone.

    Tables without lists, such as CSV, keep several captions of an image so. Such a text that cannot
    be read gives a DataError.
    """
    if isinstance(value, list) or not isinstance(value, str):
        return value if isinstance(value, list) else [value]
    text = value.strip()
    if not _TEXTS.match(text):
        return [value]
    texts = _read_list(text)
    return texts or [DataError("is a list of texts that cannot be read: write it as JSON")]


def _read_list(text: str) -> list[Any]:
    """Read a list of texts, as JSON or Python writes it; nothing from any other text.

    Python joins texts that no comma parts, as numpy prints them: those are no list here.
    """
    with suppress(ValueError, RecursionError):
        return list(json.loads(text))
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        with warnings.catch_warnings(action="ignore"):
            values = ast.literal_eval(text)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        if sum(one.type == tokenize.STRING for one in tokens) == len(values):
            return list(values)
    return []
