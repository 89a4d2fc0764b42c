"""Encoded bytes to upright RGB, refusing what is truncated, too large or no image."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from gmail_align.errors import DataError

MAX_PIXELS: Final = 89_478_485
"""Most pixels of an image (Pillow's own limit); more is taken for a decompression bomb."""
MAX_ASPECT: Final = 200
"""Longest side over shortest; more would make resizing by the shortest side explode."""
MAX_PROFILE: Final = 4 * 2**20
"""Most bytes of a colour profile that is applied."""

_FORMATS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp"), ("JPEG", "MPO")),
    "mpo": ("JPEG", "MPO"),
    **dict.fromkeys(("tif", "tiff"), ("TIFF",)),
    **dict.fromkeys(("png", "apng"), ("PNG",)),
    "webp": ("WEBP",),
    "gif": ("GIF",),
    **dict.fromkeys(("bmp", "dib"), ("BMP", "DIB")),
    **dict.fromkeys(("ppm", "pgm", "pbm", "pnm", "pfm"), ("PPM",)),
    **dict.fromkeys(("avif", "avifs"), ("AVIF",)),
    **dict.fromkeys(("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"), ("JPEG2000",)),
    "tga": ("TGA",),
    "ico": ("ICO",),
}
_UNREADABLE: Final = {
    *("heic", "heif", "hif", "jxl", "svg", "psd", "xcf", "eps", "dng", "cr2", "cr3", "nef"),
    *("arw", "orf", "rw2", "raf", "raw", "exr", "hdr", "dds", "pcx", "xbm", "xpm", "sgi", "qoi"),
}
SUFFIXES: Final = frozenset({*_FORMATS, *_UNREADABLE})
"""Suffixes of image files, in small letters and without the dot; some of them cannot be decoded."""

_SHALLOW: Final = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_FOREIGN: Final = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError),
    *(AttributeError, AssertionError, RuntimeError, ImageCms.PyCMSError),
)
_MANAGED: Final = {
    **dict.fromkeys(("RGB", "RGBA", "P", "PA"), "RGB"),
    **dict.fromkeys(("L", "LA"), "L"),
    "CMYK": "CMYK",
}
"""Mode of an image whose profile is applied -> the mode in which its colours are converted."""
_BITS_PER_SAMPLE: Final = 258
_SIZ: Final = b"\xff\x4f\xff\x51"
_SRGB: Final = (b"sRGB", "sRGB".encode("utf-16-be"))
_ORIENTATION: Final = 0x0112
_TURNS: Final = range(2, 9)
_MARK: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
GENERATED_XMP: Final = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" '
    b'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    b'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/'
    b'trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
"""What a generated image says about itself: IPTC's DigitalSourceType, in an XMP packet."""
_STRIP: Final = 2**22  # pixels that are laid on white at a time


@lru_cache
def _readable() -> list[str]:
    """Return the formats that this Pillow reads; the most frequent ones are tried first."""
    Image.init()
    wanted = dict.fromkeys(form for forms in _FORMATS.values() for form in forms)
    return [form for form in wanted if form in Image.OPEN]


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open encoded bytes as one of the formats that are read here; nothing is decoded yet.

    Raises:
        DataError: the reason why the bytes cannot be used; it names no file and is the same in
            every run.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_readable()) as image:
            check_size(*image.size)
            _check_range(image)
            if image.format == "TIFF" and 8 < _bits(image, data) < 16:
                raise DataError(f"has {_bits(image, data)} bits a channel: scale to 8 or 16")
            yield image
    except UnidentifiedImageError as error:
        raise DataError(_unknown(data)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"more than {MAX_PIXELS} pixels") from error
    except _FOREIGN as error:
        raise DataError(f"cannot be decoded: {error}") from error


def _unknown(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "is HEIC, which Pillow cannot read: convert it to JPEG"
    if data[:2] in (b"\xff\x0a",) or data[4:8] == b"JXL ":
        return "is JPEG XL, which Pillow cannot read: convert it to JPEG"
    return "is not an image that Pillow can read"


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image completely, turn it upright by its EXIF tag, and convert it to sRGB.

    Raises:
        DataError: the reason why the bytes cannot be used.
    """
    with opened(data) as image:
        image.load()
        return finished(image)


def finished(image: Image.Image) -> Image.Image:
    """Turn a decoded image upright, in place, and return it in sRGB."""
    profile = image.info.get("icc_profile")
    if is_turned(image):
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image, _to_srgb(image.mode, profile) if isinstance(profile, bytes) else None)


def is_turned(image: Image.Image) -> bool:
    """Tell whether an EXIF tag says to turn the image; 0 and other numbers say nothing."""
    return image.getexif().get(_ORIENTATION) in _TURNS


def _to_srgb(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return how colours of another profile become sRGB; None where there is nothing to convert.

    A profile that cannot be read, or that is of another kind of colours, is ignored.
    """
    if any(name in profile for name in _SRGB) or mode not in _MANAGED or len(profile) > MAX_PROFILE:
        return None
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(own, srgb, _MANAGED[mode], "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, ImportError):
        return None


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation tag says; the result does not have the tag."""
    return ImageOps.exif_transpose(image) if is_turned(image) else image


def to_rgb(image: Image.Image, colours: ImageCms.ImageCmsTransform | None = None) -> Image.Image:
    """Convert to RGB; what is transparent is laid on white, as in transformers' processors.

    16 bits a channel become 8 by dropping the lower ones.

    Args:
        image: The image.
        colours: How its colours become sRGB; None where they are.

    Raises:
        DataError: it has 32 bits a channel.
    """
    _check_range(image)
    if image.mode == "RGB" and "transparency" not in image.info and colours is None:
        return image
    deep = image.mode.startswith("I")
    if not (deep or "A" in image.getbands() or image.info.get("transparency") is not None):
        return image.convert("RGB") if colours is None else _managed(image, image.mode, colours)
    result = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):  # whole images of three kinds would take too much
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip.info = image.info
        if deep:
            eight = Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8))
            result.paste(eight.convert("RGB"), (0, top))
            continue
        clear = strip.convert("RGBA")
        if colours is not None:
            alpha = clear.getchannel("A")
            clear = _managed(strip if image.mode in ("L", "LA") else clear, image.mode, colours)
            clear.putalpha(alpha)
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, clear).convert("RGB"), (0, top))
    return result


def _managed(image: Image.Image, mode: str, colours: ImageCms.ImageCmsTransform) -> Image.Image:
    """Convert the colours of an image that came in a mode, without its transparency."""
    managed = ImageCms.applyTransform(image.convert(_MANAGED[mode]), colours)
    assert managed is not None, "it was not to be changed in place"
    managed.info.pop("icc_profile", None)  # it holds the time of its making
    return managed


def _check_range(image: Image.Image) -> None:
    """Refuse pixels whose range is not known, so that they cannot be brought to 8 bits.

    Raises:
        DataError: they are such.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in (None, "PNG", "PPM")):
        raise DataError("has more than 8 bits a channel, and 32 cannot be converted: scale to 8")


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of a channel in a file that was opened, which Pillow's mode may hide."""
    known: Any = image
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return int(max(known.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if image.format == "JPEG2000":
        return (data[data.index(_SIZ) + 42] & 0x7F) + 1
    if image.format == "AVIF" and b"pixi" in data:
        return data[data.index(b"pixi") + 9]
    if image.format == "PPM" and isinstance(known.tile[0][3], tuple):
        return int(known.tile[0][3][1]).bit_length()
    return 8 if image.mode in _SHALLOW else 16


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say.

    Attributes:
        form: Its format, as Pillow names it.
        mode: Pillow's mode of its pixels.
        decoded_bytes: Bytes that Pillow holds of its pixels, with those of their RGB copy.
        several: Whether it has several frames; the second picture of an MPO is none.
        deep: Whether it has more than 8 bits a channel.
    """

    form: str
    mode: str
    decoded_bytes: int
    several: bool
    deep: bool


def read_header(data: bytes) -> Header:
    """Read the header of encoded bytes.

    Raises:
        DataError: they are not an image, or one of a range that is not known.
    """
    with opened(data) as image:
        form, mode = image.format or "", image.mode
        one = len(image.getbands()) == 1
        stored = 4 if not one or mode in ("I", "F") else 2 if mode.startswith("I") else 1
        decoded = image.width * image.height * (stored + 4)
        several = form != "MPO" and bool(getattr(image, "is_animated", False))
        deep = _bits(image, data) > 8
    return Header(form, mode, decoded, several, deep)


def check_plain(header: Header, name: str = "") -> None:
    """Refuse what decodes, but not to what its maker saw or its name says.

    These are pictures of several frames, of CMYK (its conversion needs a profile), of more than 8
    bits a channel, and files whose suffix belongs to another format.

    Args:
        header: The image's header.
        name: Its file name, for the suffix; any is right when it is not an image's suffix.

    Raises:
        DataError: the reason.
    """
    ending = name.rpartition(".")[2]
    expected = _FORMATS.get(ending.lower())
    if expected and header.form not in expected:
        raise DataError(f"is {header.form}, but its name ends in .{ending}")
    if header.several:
        raise DataError("has several frames")
    if header.mode == "CMYK":
        raise DataError("is CMYK, not RGB")
    if header.deep:
        raise DataError("has more than 8 bits a channel")


def extension(data: bytes) -> str | None:
    """Return ``jpg``, ``png`` or ``webp`` by the first bytes, None for every other format."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def whole_image(data: bytes) -> bytes:
    """Return a JPEG, PNG or WebP without the bytes that follow its end."""
    ends = {"jpg": _jpeg_end, "png": _png_end, "webp": _webp_end}
    kind = extension(data)
    end = ends[kind](data) if kind else None
    return data if end is None or end >= len(data) else data[:end]


def _jpeg_end(data: bytes) -> int | None:
    """Return where the end mark is; None where there is none, or where more images follow (MPO)."""
    place = 2
    while mark := _MARK.match(data, place):
        if mark[0] == b"\xff\xd9":
            return place + 2
        if mark[0] == b"\xff\xe2" and data[place + 4 : place + 8] == b"MPF\0":
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if mark[0] == b"\xff\xda":  # the compressed pixels last until the next mark
            following = _MARK.search(data, place)
            if following is None:
                return None
            place = following.start()
    return None


def _png_end(data: bytes) -> int | None:
    place = 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        place += 12 + size
        if data[place - size - 8 : place - size - 4] == b"IEND":
            return place
    return None


def _webp_end(data: bytes) -> int:
    size = 8 + int.from_bytes(data[4:8], "little")
    return size + size % 2


def check_size(width: int, height: int) -> None:
    """Refuse sizes in pixels that decoding or resizing could not stand.

    Raises:
        DataError: too many pixels, or one side too long for the other.
    """
    if width * height > MAX_PIXELS:
        raise DataError(f"more than {MAX_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{width} x {height} pixels: one side is over {MAX_ASPECT} times the other")


def encode(image: Image.Image, form: str, quality: int = 95, *, generated: bool = False) -> bytes:
    """Encode an RGB image as ``jpeg`` (with ``quality``, 1 to 100) or as lossless ``png``.

    A generated image says so in its XMP, by IPTC's DigitalSourceType. Its pixels are the same.
    """
    buffer = io.BytesIO()
    if form == "jpeg":
        xmp = {"xmp": GENERATED_XMP} if generated else {}
        image.save(buffer, format="JPEG", quality=quality, **xmp)
    else:
        words = PngInfo()
        if generated:
            words.add_itxt("XML:com.adobe.xmp", GENERATED_XMP.decode())
        image.save(buffer, format="PNG", compress_level=6, pnginfo=words)
    return buffer.getvalue()
