"""Tables: Parquet (with images inside, or files that rows name), JSON, CSV and lines of text."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gmail_align.artifacts import fingerprint
from gmail_align.data.ids import key_id, name_id, numbered
from gmail_align.errors import DataError
from gmail_align.importing.members import Members, name_of_folder, suffix
from gmail_align.importing.rows import TABLES, ParquetImages, table_rows, value_of
from gmail_align.importing.source import Images, Source, image_places
from gmail_align.importing.splits import SplitChoice, files_in
from gmail_align.importing.staging import Staging
from gmail_align.importing.streams import file_size

_TEXT_FIELDS = ("raw", "text", "caption", "sentence")
"""Fields of a caption that is stored as a record, as mirrors of COCO do."""


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
        str,
        Field(description="Column of captions: a text, or a list; sentences.raw is a field of it."),
    ] = "caption",
    id_column: Annotated[str | None, Field(description="Column of image ids.")] = None,
    split: SplitChoice = None,
) -> Source:
    """Import tables with named columns: .parquet, .json, .jsonl, .csv, .tsv, or .txt of captions.

    Several rows may describe one image: those of one id, or of one file. An image's id is that of
    the id column, else of its file's name, else file and row. Images inside Parquet are one image
    where their bytes are the same.
    """
    paths = files_in(source, TABLES, split)
    reader = _TableReader(
        paths, Columns(image_column, caption_column, id_column), image_places(images)
    )
    for number, path in enumerate(paths):
        for row, values in table_rows(path, reader.required):
            reader.add(number, row, values)
    return Source(
        config={"format": "table", "columns": [image_column, caption_column, id_column]},
        inputs={
            "tables": fingerprint([[path.name, file_size(path)] for path in paths]),
            "listed": reader.staging.fingerprint(),
        },
        staging=reader.staging,
        members=reader.members,
    )


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns: of images and captions, and of ids where there is one."""

    image: str
    caption: str
    id: str | None = None


class _TableReader:
    """Lists the rows of tables; keeps what they have in common."""

    def __init__(self, paths: Sequence[Path], columns: Columns, members: Members | None) -> None:
        self.staging = Staging()
        self._columns = columns
        self._inside = members is None and all(suffix(path.name) == "parquet" for path in paths)
        self._bytes = ParquetImages(paths)
        self._listed_bytes = ParquetImages(paths)  # read forwards too, but behind
        self._files = members
        self.members = self._bytes if self._inside else members
        self._several = len(paths) > 1
        self._homes = [path.absolute().parent for path in paths]
        above = Path(os.path.commonpath(self._homes))
        names = [home.relative_to(above).as_posix() for home in self._homes]
        self._folders = ["" if name == "." else name for name in names]
        self._digests: dict[str, str] = {}

    @property
    def required(self) -> list[str]:
        """The columns that every table must have."""
        names = [self._columns.caption, *([self._columns.id] if self._columns.id else [])]
        return [*names, self._columns.image] if self._inside or self._files else names

    def add(self, number: int, row: int, values: Any) -> None:
        """List one row of one table."""
        name = f"{number}-{row}" if self._several else str(row)
        if isinstance(values, DataError):
            self.staging.refuse("captions", f"row-{name}", str(values))
            return
        if isinstance(values, str):
            values = {self._columns.caption: values}
        shown = value_of(values, self._columns.image)
        file = shown.get("path") if isinstance(shown, dict) else shown
        file = posixpath.normpath(file) if isinstance(file, str) and file else None
        own_id = value_of(values, self._columns.id) if self._columns.id else None
        place = f"{number}:{row}:{self._columns.image}"
        if file and not self._inside:
            names = self._names(number, file)
            place = self.staging.locate(self._files, *names)
            image_id = self.staging.image_id(posixpath.join(self._folders[number], file), place)
        else:
            image_id = name_id(file) if file else f"row-{name}"
        if own_id is not None and own_id == own_id:  # not a number that is none
            image_id = key_id(str(own_id))
        if self._inside:
            image_id, place = self._same_bytes(image_id, place)
        texts = _texts(value_of(values, self._columns.caption))
        first = self.staging.number_captions(image_id, len(texts))
        captions = [(numbered(image_id, k), text) for k, text in enumerate(texts, first)]
        self.staging.add(image_id, place, captions)

    def _names(self, number: int, file: str) -> list[str]:
        """Return by what a file may be found: in its table's own folder first."""
        home = name_of_folder(self._files, self._homes[number])
        names = [] if home is None else [posixpath.join(home, file)]
        return list(dict.fromkeys([*names, posixpath.join(self._folders[number], file), file]))

    def _same_bytes(self, image_id: str, place: str) -> tuple[str, str]:
        """Return the image that a row's bytes are: a listed one of that id, or another."""
        listed = self.staging.place(image_id)
        if listed is None:
            return image_id, place
        if listed not in self._digests:
            self._digests[listed] = _digest(self._listed_bytes, listed)
        own = _digest(self._bytes, place)
        if own == self._digests[listed]:
            return image_id, listed
        other = key_id(f"{image_id}.{own[:12]}")
        return other, self.staging.place(other) or place


def _digest(images: ParquetImages, place: str) -> str:
    """Return the sha256 of an image; of the place itself where it does not have bytes."""
    try:
        data = images.read(place)
    except DataError:
        data = place.encode()
    return hashlib.sha256(data).hexdigest()


def _texts(value: Any) -> list[Any]:
    """Return the captions in a cell: a text, a number, a record, or a list of those."""
    values = value if isinstance(value, list) else [value]
    return [_text(one) for one in values] or [None]


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return next((value[name] for name in _TEXT_FIELDS if name in value), value)
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    return value
