"""Encoded bytes to RGB, refusing what is truncated, too large or no image."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from gmail_align.errors import DataError

MAX_PIXELS: Final = 89_478_485
"""Most pixels of an image (Pillow's own limit); more is taken for a decompression bomb."""
MAX_ASPECT: Final = 200
"""Longest side over shortest; more would make resizing by the shortest side explode."""


_FORMATS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("jpg", "jpeg", "jpe"), ("JPEG", "MPO")),
    **dict.fromkeys(("tif", "tiff"), ("TIFF",)),
    "png": ("PNG",),
    "webp": ("WEBP",),
    "gif": ("GIF",),
    "bmp": ("BMP",),
    "ppm": ("PPM",),
}
SUFFIXES: Final = frozenset(_FORMATS)
"""Suffixes of image files, in small letters and without the dot."""

_SHALLOW: Final = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}


def extension(data: bytes) -> str | None:
    """Return ``jpg``, ``png`` or ``webp`` by the first bytes, None for every other format."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; what is transparent is laid on white, as in transformers' processors."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image completely and convert it to RGB.

    The orientation tag of EXIF is not applied, as in the processors that CLIP was trained with.

    Raises:
        DataError: the reason why the bytes cannot be used; it names no file, and is the same in
            every run.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(*image.size)
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise DataError("no image that Pillow can read" if data else "the file is empty") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"more than {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError) as error:
        raise DataError(f"cannot be decoded: {error}") from error


def check_plain(data: bytes, name: str = "") -> None:
    """Refuse what decodes, but not to what its maker saw or its name says.

    These are pictures of several frames, of CMYK (its conversion needs a profile), of more than 8
    bits a channel, and files whose suffix belongs to another format.

    Args:
        data: The encoded image.
        name: Its file name, for the suffix; any is right when it has none of an image.

    Raises:
        DataError: the reason.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            form, mode = image.format or "", image.mode
            frames = 1 if form == "MPO" else int(getattr(image, "n_frames", 1))
            deep = data[24:25] == b"\x10" if form == "PNG" else mode not in _SHALLOW
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError) as error:
        raise DataError(f"cannot be decoded: {error}") from error
    said = _FORMATS.get(name.rpartition(".")[2].lower())
    if said and form not in said:
        raise DataError(f"is {form}, but its name ends in .{name.rpartition('.')[2]}")
    if frames > 1:
        raise DataError(f"has {frames} frames")
    if mode == "CMYK":
        raise DataError("is CMYK, not RGB")
    if deep:
        raise DataError("has more than 8 bits a channel")


def shallow(image: Image.Image) -> Image.Image:
    """Bring a grey image of 16 bits to 8 by dropping the lower ones; others stay as they are."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def check_size(width: int, height: int) -> None:
    """Refuse sizes in pixels that decoding or resizing could not stand.

    Raises:
        DataError: too many pixels, or one side too long for the other.
    """
    if width * height > MAX_PIXELS:
        raise DataError(f"more than {MAX_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{width} x {height} pixels: one side is over {MAX_ASPECT} times the other")


def encode(image: Image.Image, form: str, quality: int = 95) -> bytes:
    """Encode an RGB image as ``jpeg`` (with ``quality``, 1 to 100) or as lossless ``png``."""
    buffer = io.BytesIO()
    if form == "jpeg":
        image.save(buffer, format="JPEG", quality=quality)
    else:
        image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
