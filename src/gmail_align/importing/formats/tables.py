"""Tables: Parquet (with images inside, or files that rows name), JSON and CSV."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from gmail_align.artifacts import fingerprint
from gmail_align.data.captions import name_id
from gmail_align.errors import DataError
from gmail_align.importing.formats.streams import json_items, json_lines, opened
from gmail_align.importing.members import Members
from gmail_align.importing.source import Images, Source, files_in, image_places
from gmail_align.importing.staging import Staging, add, located

_BATCH: Final = 64  # rows that are decoded at a time where images are inside


class Tables:
    """The images inside Parquet files, by the place that the listing gave them."""

    serial = True

    def __init__(self, paths: Sequence[Path], column: str) -> None:
        self._paths, self._column = paths, column
        self._rows: Iterator[tuple[int, dict[str, Any]]] = iter(())
        self._file, self._at = -1, -1
        self._value: dict[str, Any] = {}

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield nothing: rows are listed by :func:`list_table`."""
        yield from ()

    def find(self, name: str) -> str | None:
        """Return the place itself."""
        return name

    def stamp(self, name: str) -> list[int] | None:
        """Return file and row."""
        return [int(part) for part in name.split(":")[:2]]

    def place(self, name: str) -> int:
        """Return file and row as one number."""
        file, row = (int(part) for part in name.split(":")[:2])
        return (file << 40) + row

    def read(self, name: str) -> bytes:
        """Return an image's bytes; rows are read forwards."""
        file, row, column = name.split(":")[:3]
        if int(file) != self._file or int(row) < self._at:
            self._file, self._at = int(file), -1
            self._rows = _image_rows(self._paths[self._file])
        if int(row) != self._at:
            found = next((one for one in self._rows if one[0] == int(row)), (int(row), {}))
            self._at, self._value = found
        value = self._value.get(column)
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError("the row holds no bytes of an image")
        return data


def _image_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        columns = [field.name for field in file.schema_arrow if _holds_bytes(field.type)]
        row = 0
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            for values in batch.to_pylist():
                yield row, values
                row += 1


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def table_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Any]]:
    """Yield number (from 0) and values of every row of a Parquet, JSON, JSON-lines or CSV file.

    Columns of Parquet that hold bytes are left out (their ``path`` stays); a line that cannot be
    read yields a DataError.

    Raises:
        DataError: the file is missing, damaged, or lacks one of ``columns``.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        yield from _parquet_rows(path, columns)
    elif kind in ("csv", "tsv"):
        yield from _csv_rows(path, "\t" if kind == "tsv" else ",", columns)
    elif kind == "json":
        for number, value in enumerate(json_items(path)):
            yield number, value if isinstance(value, dict) else DataError("is no object")
    elif kind in ("jsonl", "ndjson"):
        for number, value in json_lines(path):
            wrong = not isinstance(value, dict | DataError)
            yield number - 1, DataError("is no object") if wrong else value
    else:
        raise DataError(
            f"{path} is neither .parquet nor .json, .jsonl or .csv: name it by its format"
        )


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Any]]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            fields = {field.name: field.type for field in file.schema_arrow}
            _refuse_columns(path, columns, list(fields))
            wanted = [name for name, kind in fields.items() if not _holds_bytes(kind)]
            wanted += [
                f"{name}.path"
                for name, kind in fields.items()
                if pa.types.is_struct(kind) and any(part.name == "path" for part in kind)
            ]
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for values in batch.to_pylist():
                    yield row, values
                    row += 1
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is no Parquet file that can be read: {error}") from error


def _csv_rows(path: Path, sign: str, columns: Sequence[str] | None) -> Iterator[tuple[int, Any]]:
    with opened(path) as file:
        lines = (line.decode("utf-8", "replace") for line in file)
        reader = csv.DictReader(lines, delimiter=sign, skipinitialspace=sign == ",")
        number = -1
        try:
            _refuse_columns(path, columns, list(reader.fieldnames or ()))
            for number, values in enumerate(reader):
                yield number, values
        except csv.Error as error:
            yield number + 1, DataError(f"is no CSV from here on: {error}")


def _refuse_columns(path: Path, wanted: Sequence[str] | None, have: Sequence[str]) -> None:
    for name in wanted or ():
        if name not in have:
            raise DataError(f"{path} has no column {name!r}: it has {', '.join(have)}")


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns: ``image`` and ``caption``, and of ``id`` where there is one."""

    image: str
    caption: str
    id: str | None = None


def list_table(
    staging: Staging, paths: Sequence[Path], columns: Columns, members: Members | None
) -> Members | None:
    """List the rows of tables whose images are inside (Parquet) or files that the rows name.

    A caption column may hold one text or a list of texts, and several rows may describe one image:
    those of one id, unless they name different files. An image's id is that of the id column, else
    of its file's name, else file and row.

    Args:
        staging: Gets the images and captions.
        paths: The tables in order.
        columns: Their columns.
        members: Where files that rows name are; None when they are inside, or for captions alone.

    Returns:
        Where the images are.

    Raises:
        DataError: a table is missing, damaged, or lacks a column.
    """
    inside = members is None and all(path.suffix == ".parquet" for path in paths)
    wanted = [columns.caption, *([columns.id] if columns.id else [])]
    if inside or members:
        wanted.append(columns.image)
    for number, path in enumerate(paths):
        for row, values in table_rows(path, wanted):
            name = f"{number}-{row}" if len(paths) > 1 else str(row)
            if isinstance(values, DataError):
                staging.refuse("captions", f"row-{name}", str(values))
                continue
            place = f"{number}:{row}:{columns.image}"
            said = values.get(columns.image)
            file = said.get("path") if isinstance(said, dict) else said
            if isinstance(file, str) and not inside:
                place = located(members, file)
            image_id = _row_id(values, columns, file, name)
            listed = staging.place(image_id)
            if members is not None and listed not in (None, place):
                reason = f"the id {image_id} comes twice, with another file; the first is kept"
                staging.refuse("images", image_id, reason)
            else:
                _add_row(staging, image_id, listed or place, values.get(columns.caption))
    return Tables(paths, columns.image) if inside else members


def _row_id(values: dict[str, Any], columns: Columns, file: Any, name: str) -> str:
    if columns.id:
        return name_id(f"{values.get(columns.id)}.x")
    return name_id(posixpath.normpath(file)) if isinstance(file, str) and file else f"row-{name}"


def _add_row(staging: Staging, image_id: str, place: str, said: Any) -> None:
    texts = said if isinstance(said, list) else [said]
    first = staging.number_captions(image_id, len(texts))
    add(staging, image_id, place, [(f"{image_id}-{k}", one) for k, one in enumerate(texts, first)])


def parquet(
    source: Annotated[
        Sequence[Path],
        Field(description="Tables, or folders of them; may be repeated.", min_length=1),
    ],
    images: Images = (),
    image_column: Annotated[
        str, Field(description="Column of image bytes (Parquet) or file names.")
    ] = "image",
    caption_column: Annotated[
        str, Field(description="Column of captions: a text, or a list of them.")
    ] = "caption",
    id_column: Annotated[str | None, Field(description="Column of image ids.")] = None,
) -> Source:
    """Import tables with named columns: .parquet, .json, .jsonl, .csv or .tsv."""
    staging = Staging()
    columns = Columns(image_column, caption_column, id_column)
    paths = files_in(source, (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv", ".jsonl.gz"))
    members = list_table(staging, paths, columns, image_places(images))
    config = {"format": "table", "columns": [columns.image, columns.caption, columns.id]}
    inputs = {
        "tables": fingerprint([[path.name, path.stat().st_size] for path in paths]),
        "listed": staging.fingerprint(),
    }
    return Source(config=config, inputs=inputs, staging=staging, members=members)
