"""Ids of images, captions and generated images: one convention, in one place.

An image's id is made of its file's name. The ``k``-th caption of image ``dog`` may be ``dog-k``.
The ``k``-th image generated from caption ``dog-0`` is ``dog-0-k``.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Sequence
from typing import Final

from gmail_align.data.names import Names
from gmail_align.errors import DataError

_SAFE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,89}")
_NAME_LENGTH: Final = 80  # ids of captions and of generated images are longer than their image's


def safe_id(value: str, what: str) -> str:
    """Return ``value`` if it can name a file and a WebDataset sample.

    Ids are 1 to 90 letters, digits, ``_`` and ``-``, and begin with a letter or a digit: no dots
    (they split a sample's name), no slashes (they leave the folder).

    Args:
        value: The id.
        what: What it is the id of, for the message.

    Raises:
        DataError: another id.
    """
    if not _SAFE_ID.fullmatch(value):
        raise DataError(
            f"{what} has the id {value[:100]!r}: ids are 1 to 90 letters, digits, '_' and '-', "
            "beginning with a letter or a digit"
        )
    return value


def name_id(name: str) -> str:
    """Return the id of a file by its name inside its set, without the suffix.

    Folders are set off by ``--``. Where a name cannot be an id, unfit characters are replaced and
    ten digits of its hash are added, so that different names never give one id.
    """
    stem = posixpath.splitext(name)[0]
    plain = stem.replace("/", "--")
    if _SAFE_ID.fullmatch(plain) and len(plain) <= _NAME_LENGTH and "--" not in stem:
        return plain
    fit = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[: _NAME_LENGTH - 11] or "image"
    return f"{fit}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:10]}"


def key_id(key: str) -> str:
    """Return the id of a key that is not a file name: all of it counts, dots included."""
    return name_id(f"{key}.x")


def fit_id(value: str) -> str:
    """Return an id that a source gives as it is where it can be one, else by :func:`key_id`."""
    return value if _SAFE_ID.fullmatch(value) else key_id(value)


def id_text(value: object) -> str | None:
    """Return the text of an id that a source gives; None for what is neither a number nor a text.

    A whole number is one id whether it is stored as a text, as 7 or as 7.0.

    Example:
        >>> id_text(7.0), id_text("007"), id_text(True)
        ('7', '007', None)
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value)


def numbered(stem: str, k: int) -> str:
    """Return the id of an image's ``k``-th caption, or of a caption's ``k``-th generated image."""
    return f"{stem}-{k}"


def split_number(value: str) -> tuple[str, int] | None:
    """Return the two parts of :func:`numbered`; None for an id of another form."""
    stem, dash, k = value.rpartition("-")
    return (stem, int(k)) if dash and k.isdecimal() and k.isascii() else None


class ByCaption:
    """Ids of generated images by the caption that they were made from.

    Ids of another form than :func:`numbered` belong to no caption.
    """

    def __init__(self, image_ids: Sequence[str]) -> None:
        self.ids = Names.of(image_ids)
        self._captions = Names((split_number(name) or ("",))[0] for name in self.ids)

    def rows(self, caption_ids: Sequence[str]) -> list[list[int]]:
        """Return the rows of the images of each of some captions, by ascending ``k``."""
        return [[row for _, _, row in own] for own in self._of(caption_ids)]

    def names(self, caption_ids: Sequence[str]) -> list[list[str]]:
        """Return the ids of the images of each of some captions, by ascending ``k``."""
        return [[name for _, name, _ in own] for own in self._of(caption_ids)]

    def _of(self, caption_ids: Sequence[str]) -> list[list[tuple[int, str, int]]]:
        owners, rows = self._captions.every_rows(caption_ids)
        every: list[list[tuple[int, str, int]]] = [[] for _ in caption_ids]
        names = self.ids.take(rows)
        for owner, row, name in zip(owners.tolist(), rows.tolist(), names, strict=True):
            if (parts := split_number(name)) is not None:
                every[owner].append((parts[1], name, row))
        return [sorted(own) for own in every]
