from __future__ import annotations

import base64

import pytest

from gmail_align.errors import DataError
from gmail_align.report.images import LONGEST, data_uri, decode

from .conftest import encoded


@pytest.mark.parametrize(("kind", "mime"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_small_images_are_kept_byte_for_byte(kind: str, mime: str) -> None:
    head, _, body = data_uri(encoded(kind), "it").partition(",")
    assert head == f"data:{mime};base64"
    assert base64.b64decode(body) == encoded(kind)


@pytest.mark.parametrize(("kind", "size"), [("PNG", 900), ("BMP", 8)])
def test_large_and_unusual_images_become_small_jpegs(kind: str, size: int) -> None:
    head, _, body = data_uri(encoded(kind, size), "it").partition(",")
    assert head == "data:image/jpeg;base64"
    image, _ = decode(base64.b64decode(body), "it")
    assert max(image.size) == min(size, LONGEST)


@pytest.mark.parametrize("broken", [b"", b"<svg/>", encoded("PNG", 64)[:60]])
def test_what_is_no_image_is_refused_by_name(broken: bytes) -> None:
    with pytest.raises(DataError, match="the real image of pair 3"):
        data_uri(broken, "the real image of pair 3")
