"""The centre of a resized image, without computing most of what is cut off, and its planes.

Pillow resizes along rows first, rounds to bytes, then along columns; columns do not meet in the
second pass, nor rows in the first. So what is cut off after the second pass can be left out before
it and, along the other axis, before the first; what remains is the same to the last bit. Pillow 13
goes the other way where an image is over twice as tall as wide; such images are resized whole.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

_REACH: Final = 3  # input pixels that any filter of Pillow looks at, each way, times the scale


def resized_centre(
    image: Image.Image, size: tuple[int, int], side: int, method: Image.Resampling
) -> Image.Image:
    """Resize to ``size`` (width, height) and cut the square of ``side`` out of the middle.

    The square reaches beyond an image that is smaller; there it is black.
    """
    width, height = size
    left, top = (width - side) // 2, (height - side) // 2
    moderate = max(image.size) < 2 * min(image.size)
    if moderate and min(size) >= side and _rows_first(method):
        if width > side:
            image = image.resize((width, image.height), resample=method)
            image = image.crop((left, 0, left + side, image.height))
            width, left = side, 0
        elif height > side:
            image = _along_rows(image, (width, height), (top, top + side), method)
    image = image.resize((width, height), resample=method)
    if image.size == (side, side):
        return image
    return image.crop((left, top, left + side, top + side))


@cache
def _rows_first(method: Image.Resampling) -> bool:
    """See whether this Pillow resizes along rows first, down and up, wide images and tall ones."""
    noise = np.random.default_rng(0).integers(0, 256, (39, 21, 3), dtype=np.uint8)
    for pixels in (noise, noise.transpose(1, 0, 2)):
        image = Image.fromarray(np.ascontiguousarray(pixels))
        for part in (0.4, 1.7):
            width, height = (int(part * length) for length in image.size)
            twice = image.resize((width, image.height), method).resize((width, height), method)
            if twice.tobytes() != image.resize((width, height), method).tobytes():
                return False
    return method != Image.Resampling.NEAREST


def _along_rows(
    image: Image.Image, size: tuple[int, int], kept: tuple[int, int], method: Image.Resampling
) -> Image.Image:
    """Resize along rows, leaving black those rows of which none of ``kept`` will be made."""
    scale = image.height / size[1]
    reach = math.ceil(_REACH * max(1.0, scale)) + 1
    first = max(0, math.floor(kept[0] * scale) - reach)
    last = min(image.height, math.ceil(kept[1] * scale) + reach)
    rows = image.crop((0, first, image.width, last)).resize((size[0], last - first), method)
    whole = Image.new(image.mode, (size[0], image.height))
    whole.paste(rows, (0, first))
    return whole


def planes(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return an RGB image as an array of shape (3, height, width)."""
    try:
        flat = pa.array(image).values.to_numpy(zero_copy_only=True)  # four bytes a pixel
        pixels = flat.reshape(image.height, image.width, 4)[..., :3]
    except (TypeError, ValueError, AttributeError, pa.ArrowException):
        pixels = np.asarray(image)  # older Pillow, or an image in several pieces of memory
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
