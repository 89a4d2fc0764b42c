from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from gmail_align.data import decode
from gmail_align.data.decode import decode_rgb, encode, extension, read_header, to_rgb
from gmail_align.encoders.preprocess import open_image
from gmail_align.errors import DataError
from gmail_align.importing.admission import admit, change_of


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
    ("data", "reason"),
    [(b"", "the file is empty"), (b"<html>", "is not an image that Pillow can read")],
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


def photo(seed: int) -> Image.Image:
    low = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((60, 40), Image.Resampling.BICUBIC)


def with_tag(image: Image.Image, form: str, tag: int) -> bytes:
    """Encode an image with an orientation tag."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = tag
    image.save(buffer, form, exif=exif, **({"quality": 98} if form == "JPEG" else {}))
    return buffer.getvalue()


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("tag", TURNS)
def test_a_photo_is_turned_upright_and_stored_without_the_tag(form: str, tag: int) -> None:
    upright = photo(1)
    turned = TURNS[tag]
    data = with_tag(upright.transpose(turned), form, tag)
    shown = np.asarray(decode_rgb(data), dtype=float)
    assert shown.shape == (40, 60, 3)
    assert np.abs(shown - np.asarray(upright)).mean() < 4
    record, kept = admit("a", data, name=f"a.{form.lower()}")
    assert (record.width, record.height) == (60, 40)
    with Image.open(io.BytesIO(kept)) as stored:
        assert stored.getexif().get(0x0112, 1) == 1
        assert np.abs(np.asarray(stored, dtype=float) - shown).mean() < 5
    assert np.abs(np.asarray(open_image(Image.open(io.BytesIO(data))), float) - shown).max() == 0


def test_an_upright_photo_keeps_its_bytes() -> None:
    for data in (with_tag(photo(2), "JPEG", 1), encode(photo(2), "jpeg")):
        assert admit("a", data)[1] == data


def test_32_bits_are_refused_even_where_images_are_converted() -> None:
    for mode in ("F", "I"):
        buffer = io.BytesIO()
        Image.new(mode, (9, 9), 70_000).save(buffer, "TIFF")
        with pytest.raises(DataError, match="32"):
            admit("a", buffer.getvalue(), convert=True)


def _tiff(bits: int, channels: int) -> bytes:
    """Return a TIFF of 8 x 8 pixels, which are all 1, with so many bits a channel."""
    pixels = np.full(64 * channels, 1, "<u2").tobytes()[: 64 * channels * bits // 8]
    tags = {256: 8, 257: 8, 259: 1, 262: 1 + channels // 3, 273: 200, 277: channels, 278: 8}
    tags |= {279: len(pixels), 258: bits if channels == 1 else 190}
    rows = [
        struct.pack("<HHII", tag, 3, channels if tag == 258 else 1, value)
        for tag, value in sorted(tags.items())
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(rows)) + b"".join(rows) + bytes(4)
    return head.ljust(190, b"\0") + struct.pack("<3H", bits, bits, bits) + bytes(4) + pixels


def test_depths_that_pillow_hides_are_seen() -> None:
    with pytest.raises(DataError, match="more than 8 bits"):
        admit("a", _tiff(16, 3))
    assert read_header(_tiff(8, 3)).deep is False
    with pytest.raises(DataError, match="12 bits"):
        decode_rgb(_tiff(12, 1))
    with pytest.raises(DataError, match="more than 8 bits"):
        admit("a", b"P6 8 8 1023 " + bytes(384))
    assert not read_header(b"P6 8 8 127 " + bytes(192)).deep
    with pytest.raises(DataError, match="32"):
        open_image(Image.new("F", (8, 8), 0.5))


def test_16_bits_become_8_by_their_upper_ones() -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (16, 24), dtype=np.uint16)
    graymap = b"P5 24 16 65535 " + deep.astype(">u2").tobytes()
    kept = admit("a", graymap, name="a.pgm", convert=True)[1]
    with Image.open(io.BytesIO(kept)) as stored:
        assert np.array_equal(np.asarray(stored)[..., 0], (deep >> 8).astype(np.uint8))


def test_a_large_transparent_image_is_laid_on_white_strip_by_strip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (37, 21, 4), dtype=np.uint8))
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr(decode, "_STRIP", 50)
    assert np.array_equal(np.asarray(to_rgb(image)), whole)


def swapped_profile() -> bytes:
    """Return the sRGB profile with red and blue exchanged, under another name."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    table = data[128:512].replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ")
    data = data[:128] + table.replace(b"tmp!", b"bXYZ") + data[512:]
    wide = "sRGB".encode("utf-16-be")
    return data.replace(b"sRGB", b"test").replace(wide, "test".encode("utf-16-be"))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_colours_of_another_profile_become_srgb(form: str) -> None:
    buffer = io.BytesIO()
    red = Image.new("RGB", (16, 16), (250, 5, 5))
    red.save(buffer, form, icc_profile=swapped_profile())
    pixel = np.asarray(decode_rgb(buffer.getvalue()))[8, 8]
    assert pixel[2] > 200 > 60 > pixel[0]
    kept = admit("a", buffer.getvalue())[1]
    assert kept == buffer.getvalue()  # every door applies the profile that the bytes hold
    assert np.array_equal(np.asarray(decode_rgb(kept))[8, 8], pixel)
    for profile in (b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))):
        data = profile if isinstance(profile, bytes) else profile.tobytes()
        buffer = io.BytesIO()
        red.save(buffer, form, icc_profile=data)
        assert np.asarray(decode_rgb(buffer.getvalue()))[8, 8][0] > 200


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_colours_of_a_transparent_image_become_srgb(mode: str) -> None:
    buffer, clear = io.BytesIO(), Image.new("RGBA", (16, 16), (250, 5, 5, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 4, 4))
    clear.convert(mode).save(buffer, "PNG", icc_profile=swapped_profile())
    for image in (decode_rgb(buffer.getvalue()), open_image(Image.open(buffer))):
        pixels = np.asarray(image)
        assert pixels[8, 8][2] > 200 > 60 > pixels[8, 8][0]
        assert pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_a_generated_image_says_so_and_keeps_its_pixels(form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain, said = encode(image, form), encode(image, form, generated=True)
    assert b"trainedAlgorithmicMedia" in said and b"trainedAlgorithmicMedia" not in plain
    assert np.array_equal(np.asarray(decode_rgb(plain)), np.asarray(decode_rgb(said)))
    description = Image.open(io.BytesIO(said)).getxmp()["xmpmeta"]["RDF"]["Description"]
    assert description["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_a_tag_that_does_not_turn_an_image_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(buffer, "JPEG", exif=exif)
    data = buffer.getvalue()
    _, kept = admit("1", data)
    assert kept == data and change_of(data, kept) == ""
