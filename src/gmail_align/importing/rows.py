"""The reading layer of tables: Parquet, CSV, TSV, JSON, JSON lines, and plain lines of text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from gmail_align.errors import DataError, damage_explained
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
    require_file,
    text_lines,
)
from gmail_align.remote import open_url, shown, url_of

TABLES: Final = (
    *(".parquet", ".jsonl", ".ndjson", ".csv", ".tsv"),
    *(".jsonl.gz", ".ndjson.gz", ".csv.gz", ".tsv.gz"),
)
"""Suffixes of files that are tables for sure; .json and .txt may be something else."""

_SIGNS: Final = (",", ";", "|", "\t")
_SEPARATOR: Final = re.compile("sep=(.)", re.IGNORECASE)
_LONGEST_RECORD: Final = 200  # lines of one quoted CSV record
_BATCH: Final = 64  # rows that are decoded at a time where images are inside
_IN_MEMORY: Final = 64 * 2**20  # bytes of the rows that are decoded at a time
_UNPACKED: Final = 128 * 2**20  # bytes of a column of a row group that may unpack at any rate
_RATIO: Final = 16  # times the bytes in the file to which larger columns may unpack


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

    An object that has the columns is a row itself.
    """
    if is_json_lines(path):
        yield from (value for _, value in json_lines(path))
        return
    if columns and set(columns) <= (json_keys(path) or {}).keys():
        yield dict(json_pairs(path))
        return
    empty = True
    for value in json_items(path):
        empty = False
        yield value
    if not empty:
        return
    for name, value in json_pairs(path):
        if not isinstance(value, str | list):
            raise DataError(f"{path} is json, but no list of rows: give a table")
        yield {"image": name, "caption": value}


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


@contextmanager
def parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file.

    Raises:
        DataError: it is missing or damaged.
    """
    require_file(path)
    url = url_of(path)
    source = path if url is None else open_url(url)
    with damage_explained(shown(path)), pq.ParquetFile(source, pre_buffer=False) as file:
        yield file


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    with parquet_file(path) as file:
        kinds = {field.name: field.type for field in file.schema_arrow}
        require_columns(path, columns, file.schema_arrow.names)
        wanted = [part for name, kind in kinds.items() for part in _without_bytes(name, kind)]
        yield from enumerate(parquet_values(path, file, wanted, 1024))


def parquet_values(
    path: Path,
    file: pq.ParquetFile,
    columns: Sequence[str],
    most: int = _BATCH,
    groups: Iterable[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of row groups, ``most`` at a time or as few as fit in memory.

    Raises:
        DataError: a column unpacks to far more than it takes in the file.
    """
    for number in range(file.num_row_groups) if groups is None else groups:
        group = file.metadata.row_group(number)
        size = max((_row_size(path, group, name) for name in columns), default=0)
        rows = max(1, min(most, _IN_MEMORY // max(1, size)))
        for batch in file.iter_batches(batch_size=rows, columns=columns, row_groups=[number]):
            yield from batch.to_pylist()


def _row_size(path: Path, group: pq.RowGroupMetaData, name: str) -> int:
    """Return about how many bytes a row of a column takes: a mean, or the most with a dictionary.

    A value of a dictionary stands in the file once, and unpacked in every row that has it.
    """
    largest = 0
    for number in range(group.num_columns):
        column = group.column(number)
        if f"{column.path_in_schema}.".startswith(f"{name}."):
            whole, packed = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if whole > _UNPACKED and whole > _RATIO * packed:
                raise DataError(
                    f"column {name!r} of {path} unpacks from {packed} to {whole} bytes at once: "
                    "write it in smaller row groups"
                )
            size = whole // max(1, group.num_rows)
            if column.has_dictionary_page:
                kept = column.data_page_offset - column.dictionary_page_offset
                size = max(size, min(whole, kept * whole // packed))
            largest = max(largest, size)
    return largest


def _without_bytes(name: str, kind: pa.DataType) -> list[str]:
    """Return the parts of a column that are read while rows are listed."""
    if _is_list(kind):
        return [] if holds_bytes(kind) else [name]
    if holds_bytes(kind):
        has_path = pa.types.is_struct(kind) and any(part.name == "path" for part in kind)
        return [f"{name}.path"] if has_path else []
    return [name]


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are images: bytes, ``{bytes, path}``, or a list of those."""
    if _is_list(kind):
        return holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    tests = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view
    return any(test(kind) for test in (*tests, pa.types.is_fixed_size_binary))


def _is_list(kind: pa.DataType) -> bool:
    tests = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    views = pa.types.is_list_view, pa.types.is_large_list_view
    return any(test(kind) for test in (*tests, *views))


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


class ParquetImages:
    """The images inside Parquet files, by a place ``file:row:column``."""

    serial = True

    def __init__(self, paths: Sequence[Path]) -> None:
        """Keep the paths of the tables in their order."""
        self._paths = paths
        self._rows: Iterator[tuple[int, dict[str, Any]]] = iter(())
        self._file, self._at = -1, -1
        self._value: dict[str, Any] = {}

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield nothing: the importer lists the rows."""
        yield from ()

    def find(self, name: str) -> str | None:
        """Return the place itself."""
        return name

    def stamp(self, name: str) -> list[int]:
        """Return a size that is not known before reading, and file and row."""
        return [0, *self._parts(name)[:2]]

    def place(self, name: str) -> int:
        """Return file and row as one number."""
        file, row, _ = self._parts(name)
        return (file << 40) + row

    def read(self, name: str) -> bytes:
        """Return an image's bytes; rows are read forwards.

        Raises:
            DataError: the row does not have one image's bytes.
        """
        file, row, column = self._parts(name)
        if file != self._file or row < self._at:
            self._file, self._at = file, -1
            self._rows = _image_rows(self._paths[file], row)
        if row != self._at:
            hit = next((one for one in self._rows if one[0] == row), (row, {}))
            self._at, self._value = hit
        value = self._value.get(column)
        if isinstance(value, list):
            if len(value) != 1:
                raise DataError(f"the row has a list of {len(value)} images: it must have one")
            value = value[0]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError("the row does not have the bytes of an image")
        return data

    def _parts(self, name: str) -> tuple[int, int, str]:
        file, row, column = name.split(":", 2)
        return int(file), int(row), column


def _image_rows(path: Path, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows from the row group on that has the row ``start``."""
    with parquet_file(path) as file:
        columns = [field.name for field in file.schema_arrow if holds_bytes(field.type)]
        row, groups = 0, list(range(file.metadata.num_row_groups))
        while groups and row + file.metadata.row_group(groups[0]).num_rows <= start:
            row += file.metadata.row_group(groups.pop(0)).num_rows
        yield from enumerate(parquet_values(path, file, columns, groups=groups), row)
