from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from gmail_align.data import decode
from gmail_align.data.decode import decode_rgb, encode, extension, to_rgb
from gmail_align.errors import DataError


@pytest.mark.parametrize(
    ("form", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", None)]
)
def test_formats(make_picture: Callable[..., bytes], form: str, suffix: str | None) -> None:
    data = make_picture(1, form)
    assert extension(data) == suffix
    image = decode_rgb(data)
    assert (image.mode, image.size) == ("RGB", (24, 16))


def test_png_keeps_every_pixel(make_picture: Callable[..., bytes]) -> None:
    image = decode_rgb(make_picture(2, "PNG"))
    assert np.array_equal(np.asarray(decode_rgb(encode(image, "png"))), np.asarray(image))
    assert encode(image, "jpeg", 95) == encode(image, "jpeg", 95)


def test_what_is_transparent_becomes_white() -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2))
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_a_truncated_jpeg_is_refused(make_picture: Callable[..., bytes]) -> None:
    data = make_picture(3, size=(100, 80))
    for length in (len(data) // 2, len(data) - 100, 30):
        with pytest.raises(DataError, match="truncated|no image|cannot be decoded"):
            decode_rgb(data[:length])


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "the file is empty"), (b"<html>", "no image that Pillow can read")]
)
def test_no_images_are_refused_with_a_reason_that_never_varies(data: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_rgb(data)
    assert str(caught.value) == reason


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = encode(Image.new("RGB", (11, 10)), "png")
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + small[24:29]
    bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(DataError, match="more than 89478485 pixels"):
        decode_rgb(bomb)
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="more than 100 pixels"):
        decode_rgb(small)


def test_a_thread_of_pixels_is_refused() -> None:
    with pytest.raises(DataError, match="over 200 times the other"):
        decode_rgb(encode(Image.new("RGB", (1, 201)), "png"))
