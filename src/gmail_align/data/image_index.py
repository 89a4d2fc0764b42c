"""The index of an image store: one row of a Parquet file for each image, written and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gmail_align.data.mapped import BLOCK, store_rows
from gmail_align.data.names import Names
from gmail_align.errors import ArtifactError, damage_explained

INDEX: Final = "index.parquet"
_ROW_GROUP: Final = 65_536
INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("generator", pa.string(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("weights", pa.string()),
        pa.field("scheduler", pa.string()),
        pa.field("steps", pa.int32()),
        pa.field("guidance_scale", pa.float64()),
        pa.field("unsafe", pa.bool_()),
        pa.field("tokens_cut", pa.int32()),
        pa.field("adapter", pa.string()),
        pa.field("clip_scores", pa.list_(pa.float64())),
        pa.field("caption", pa.string()),
    ]
)


def write_index(file: IO[bytes], records: Iterator[Mapping[str, Any]]) -> int:
    """Write one row for each record, and count them."""
    count = 0
    with pq.ParquetWriter(file, INDEX_SCHEMA, compression="zstd") as writer:
        while rows := [dict(record) for record in islice(records, _ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
            count += len(rows)
    return count


class ImageIndex:
    """Which images there are, where they lie and what is known of them.

    What finds an image is mapped from temporary files, and the rest is read a group of rows at a
    time, so that memory does not grow with the images.
    """

    def __init__(self, path: Path) -> None:
        """Read the index; whatever is wrong with the file is raised as it comes."""
        self._path = path
        self._last: tuple[int, pa.Table] | None = None
        self.ids = Names(self._texts("id"))
        """The id of each image."""
        numbers = self._numbers("shard", "offset", "size", "width", "height")
        self.places, self.sides = numbers[:, :3], numbers[:, 3:]
        """Shard, offset and size of each image, shape (n, 3); width and height, shape (n, 2)."""
        digests = (
            np.frombuffer(bytes.fromhex("".join(batch.column("sha256").to_pylist())), np.uint8)
            for batch in self._batches("sha256")
        )
        self.digests: npt.NDArray[np.uint8] = store_rows(digests, np.uint8).reshape(-1, 32)
        """The hash of each image's bytes, shape (n, 32)."""
        if not len(self.ids) == len(self.places) == len(self.digests):
            raise ValueError("a hash is missing")
        for field in INDEX_SCHEMA:
            if not field.nullable and field.name not in self._names:
                raise ValueError(f"it does not have the column {field.name}")

    def record(self, row: int) -> dict[str, Any]:
        """Return everything that is known of an image."""
        table, place = self._group(row)
        known: dict[str, Any] = table.slice(place, 1).to_pylist()[0]
        return known

    @cached_property
    def texts(self) -> Names:
        """The caption that each image was assigned to, or else its prompt."""
        own = [name for name in ("caption", "prompt") if name in self._names]
        return Names(
            str(next(filter(None, values), ""))
            for batch in self._batches(*own)
            for values in zip(*(batch.column(name).to_pylist() for name in own), strict=True)
        )

    def _group(self, row: int) -> tuple[pa.Table, int]:
        """Return the group of rows that holds a row, and its place there."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        last = self._last
        if last is None or last[0] != group:
            with damage_explained(self._path, ArtifactError, "make the images again"):
                file = pq.ParquetFile(self._path)
                self._last = last = group, file.read_row_group(group, columns=self._names)
        return last[1], row - int(self._starts[group])

    @cached_property
    def _names(self) -> list[str]:
        """The columns that the file has; older ones have fewer."""
        written = pq.ParquetFile(self._path).schema_arrow.names
        return [name for name in INDEX_SCHEMA.names if name in written]

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first row of every group."""
        data = pq.ParquetFile(self._path).metadata
        sizes = [data.row_group(number).num_rows for number in range(data.num_row_groups)]
        return np.cumsum([0, *sizes[:-1]], dtype=np.int64)

    def _texts(self, name: str) -> Iterator[str]:
        return (value for batch in self._batches(name) for value in batch.column(name).to_pylist())

    def _numbers(self, *names: str) -> npt.NDArray[np.int64]:
        """Return some columns as an array, one row for each image."""
        parts = (
            np.stack([batch.column(name).cast(pa.int64()).to_numpy() for name in names], axis=1)
            for batch in self._batches(*names)
        )
        rows: npt.NDArray[np.int64] = store_rows(parts, np.int64).reshape(-1, len(names))
        return rows

    def _batches(self, *names: str) -> Iterator[pa.RecordBatch]:
        file = pq.ParquetFile(self._path, pre_buffer=False)  # a group of rows is not read ahead
        yield from file.iter_batches(BLOCK, columns=list(names), use_threads=False)
