"""Parquet: its rows, a few at a time, and the images inside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from gmail_align.errors import DataError, damage_explained
from gmail_align.importing.streams import require_file
from gmail_align.remote import open_url, shown, url_of

_BATCH: Final = 64  # rows that are decoded at a time where images are inside
_IN_MEMORY: Final = 64 * 2**20  # bytes of the rows that are decoded at a time
_UNPACKED: Final = 128 * 2**20  # bytes of a column of a row group that may unpack at any rate
_RATIO: Final = 16  # times the bytes in the file to which larger columns may unpack


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


def holds_images(path: Path, column: str) -> bool:
    """Whether a Parquet file has images, or a column of that name which is no text."""
    with parquet_file(path) as file:
        kinds = {field.name: field.type for field in file.schema_arrow}
    kind = kinds.get(column, pa.string())
    tests = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not any(test(kind) for test in tests) or any(map(holds_bytes, kinds.values()))


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


def without_bytes(name: str, kind: pa.DataType) -> list[str]:
    """Return the parts of a column that are read while rows are listed."""
    if _is_list(kind):
        return [] if holds_bytes(kind) else [name]
    if holds_bytes(kind):
        has_path = pa.types.is_struct(kind) and any(part.name == "path" for part in kind)
        return [f"{name}.path"] if has_path else []
    return [name]


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are images: bytes, ``{bytes, path}``, or a list of those."""
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
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
