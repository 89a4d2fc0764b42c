"""Open an image that a caller names or holds."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from gmail_align.errors import DataError


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """Return an RGB image.

    Raises:
        DataError: the file is missing or no image.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{image} is missing or no image that can be read") from error
