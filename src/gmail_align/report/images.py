"""Encoded images as data URIs: small JPEG or PNG, nothing else, so that the page stays one file."""

from __future__ import annotations

import base64
import io
from typing import Final

from PIL import Image

from gmail_align.data.decode import finished, opened
from gmail_align.errors import DataError

LONGEST: Final = 320
"""Pixels along the longer side of the pictures that are looked at."""
_TYPES: Final = {"JPEG": "image/jpeg", "PNG": "image/png"}
_QUALITY: Final = 88


def data_uri(encoded: bytes, name: str, longest: int = LONGEST) -> str:
    """Return an image file as a ``data:`` address; a small JPEG or PNG is kept byte for byte.

    Args:
        encoded: The file, in any format that Pillow reads.
        name: What the image is, for the message when it cannot be read.
        longest: Pixels along the longer side; a larger image is made smaller.

    Raises:
        DataError: it is not an image, or a damaged one.
    """
    encoded, kind = small_file(encoded, name, longest)
    return f"data:{_TYPES[kind]};base64,{base64.b64encode(encoded).decode('ascii')}"


def small_file(encoded: bytes, name: str, longest: int) -> tuple[bytes, str]:
    """Return a small JPEG or PNG of an image, and which of both; see :func:`data_uri`."""
    image, kind = decode(encoded, name)
    if kind in _TYPES and max(image.size) <= longest:
        return encoded, kind
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue(), "JPEG"


def decode(encoded: bytes, name: str) -> tuple[Image.Image, str]:
    """Return the image as RGB, and its format.

    Raises:
        DataError: it is not an image, or it is damaged.
    """
    try:
        with opened(encoded) as image:
            image.load()  # an RGB image is returned as it is, after the file is closed
            return finished(image), image.format or ""
    except DataError as error:
        raise DataError(f"{name} cannot be read as an image: {error}") from error
