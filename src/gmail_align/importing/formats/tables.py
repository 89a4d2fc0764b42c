"""Tables: Parquet (with images inside, or files that rows name), JSON, CSV and lines of text."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gmail_align.artifacts import fingerprint
from gmail_align.data.ids import id_text, key_id, name_id, numbered
from gmail_align.errors import DataError
from gmail_align.importing.members import Members, name_of_folder, suffix
from gmail_align.importing.parquet import ParquetImages, holds_images
from gmail_align.importing.rows import TABLES, listed_texts, table_rows, value_of
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
        packed = members is None and all(suffix(path.name) == "parquet" for path in paths)
        self._inside = packed and any(holds_images(path, columns.image) for path in paths)
        self._bytes = ParquetImages(paths)
        self._files = members
        self.members = self._bytes if self._inside else members
        self._several = len(paths) > 1
        self._homes = [path.absolute().parent for path in paths]
        above = Path(os.path.commonpath(self._homes))
        names = [home.relative_to(above).as_posix() for home in self._homes]
        self._folders = ["" if name == "." else name for name in names]

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
        own_id = self._own_id(values)
        if own_id is None:
            self.staging.refuse(
                "captions", f"row-{name}", "has an id that is no number and no text"
            )
            return
        place = f"{number}:{row}:{self._columns.image}"
        if file and not self._inside:
            place, image_id = self._find(number, file)
        else:
            image_id = name_id(file) if file else f"row-{name}"
            if not file and self._files:
                column = self._columns.image
                reason = f"its row does not name a file as {column!r}; --image-column names another"
                self.staging.refuse("images", image_id, reason)
        if own_id:
            image_id = key_id(own_id)
        if self._inside:
            image_id, place = self._same_bytes(image_id, place, given=bool(own_id))
        texts = _texts(value_of(values, self._columns.caption))
        first = self.staging.number_captions(image_id, len(texts))
        captions = [(numbered(image_id, k), text) for k, text in enumerate(texts, first)]
        if file or self._inside or not self._files:
            self.staging.add(image_id, place, captions)
        else:
            self.staging.add_captions(image_id, captions)

    def _own_id(self, values: dict[str, Any]) -> str | None:
        """Return a row's id, empty where it has none; None for a value that cannot be one."""
        value = value_of(values, self._columns.id) if self._columns.id else None
        return "" if value is None or value != value else id_text(value)

    def _find(self, number: int, file: str) -> tuple[str, str]:
        """Return place and id of a file; one beside its table is not looked for elsewhere.

        Tables of one folder may name files of any place.
        """
        whole, beside = posixpath.join(self._folders[number], file), self._homes[number] / file
        home = name_of_folder(self._files, beside.parent)
        if home is None and whole != file and os.path.isfile(beside):
            return whole, self.staging.image_id(whole, whole)
        names = [] if home is None else [posixpath.join(home, beside.name)]
        names = list(dict.fromkeys([*names, whole, file]))
        place = self.staging.locate(self._files, *names, written=file)
        return place, self.staging.image_id(whole, place)

    def _same_bytes(self, image_id: str, place: str, *, given: bool) -> tuple[str, str]:
        """Return the image that a row's bytes are: a listed one, or a new one.

        Images whose ids are given are told apart by those as well.
        """
        digest = _digest(self._bytes, place)
        if given or self.staging.same_image(digest) is None:
            listed = self.staging.place(image_id) is not None
            if listed and self.staging.same_image(digest, image_id) is None:
                image_id = key_id(f"{image_id}.{digest[:12]}")
            self.staging.note_digest(image_id, digest)
        else:
            image_id = self.staging.same_image(digest) or image_id
        return image_id, self.staging.place(image_id) or place


def _digest(images: ParquetImages, place: str) -> str:
    """Return the sha256 of an image; of the place itself where it does not have bytes."""
    try:
        data = images.read(place)
    except DataError:
        data = place.encode()
    return hashlib.sha256(data).hexdigest()


def _texts(value: Any) -> list[Any]:
    """Return the captions in a cell: a text, a number, a record, or a list of those."""
    return [_text(one) for one in listed_texts(value)] or [None]


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return next((value[name] for name in _TEXT_FIELDS if name in value), value)
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return str(value)
    return value
