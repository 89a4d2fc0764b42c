"""Real images are admitted: checked, decoded once, and stored as they came where that is right."""

from __future__ import annotations

from gmail_align.data.decode import (
    check_plain,
    encode,
    extension,
    finished,
    is_turned,
    opened,
    read_header,
    whole_image,
)
from gmail_align.data.images import ImageRecord, Sample
from gmail_align.errors import DataError


def admit(image_id: str, data: bytes, *, name: str = "", convert: bool = False) -> Sample:
    """Check that a real image decodes and make a sample of it.

    JPEG, PNG and WebP keep their bytes, without what follows the end of the image. Every other
    format is stored as lossless PNG. A photo that its EXIF tag says to turn is turned and encoded
    again without the tag: JPEG at quality 95, others as PNG.

    Args:
        image_id: Its id.
        data: Its encoded bytes.
        name: Its file name; a suffix of another format is a reason to leave the image out.
        convert: Convert what :func:`~gmail_align.data.decode.check_plain` refuses: take the first
            frame, CMYK by Pillow, the upper 8 of 16 bits, the format that the bytes have.

    Raises:
        DataError: the reason why the image cannot be used.
    """
    header = read_header(data)
    if not convert:
        try:
            check_plain(header, name)
        except DataError as error:
            raise DataError(f"{error} (import --convert changes that)") from error
    kept = whole_image(data)
    form = "jpeg" if extension(kept) == "jpg" else "png"
    with opened(data) as image:
        width, height = image.size
        stays = not (header.deep or extension(kept) is None or is_turned(image))
        if stays and header.form == "JPEG":
            image.draft(image.mode, (1, 1))  # reads every byte, and makes an eighth of each side
        image.load()
        if stays:
            return ImageRecord(id=image_id, width=width, height=height), kept
        image = finished(image)  # the decoded original is let go before the copy is encoded
    return ImageRecord(id=image_id, width=image.width, height=image.height), encode(image, form)


def change_of(encoded: bytes, kept: bytes) -> str:
    """Return what :func:`admit` changed in an image that a count should tell of; empty for nothing.

    Args:
        encoded: The bytes as they came.
        kept: The bytes that are stored.
    """
    header = read_header(encoded)
    if header.several:
        return "first of several frames"
    if header.deep:
        return "16 bits a channel to 8"
    if header.mode == "CMYK":
        return "CMYK to RGB"
    if encoded.startswith(kept):
        return "" if len(encoded) == len(kept) else "bytes behind the image's end"
    return "turned upright" if extension(encoded) else ""
