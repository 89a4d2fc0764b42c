from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gmail_align.encoders.resize import planes, resized_centre

METHODS = [Image.Resampling(number) for number in (0, 1, 2, 3, 4, 5)]
SIDE = st.integers(1, 120)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=400)
@given(SIDE, SIDE, st.integers(1, 70), st.integers(1, 70), st.sampled_from(METHODS))
def test_the_centre_is_what_resizing_everything_and_cropping_gives(
    width: int, height: int, target: int, side: int, method: Image.Resampling
) -> None:
    image = noise(width, height)
    scale = target / min(width, height)
    wide, tall = (max(1, int(scale * length)) for length in (width, height))
    left, top = (wide - side) // 2, (tall - side) // 2
    whole = image.resize((wide, tall), resample=method)
    expected = whole.crop((left, top, left + side, top + side))
    got = resized_centre(image, (wide, tall), side, method)
    assert got.size == expected.size == (side, side)
    assert got.tobytes() == expected.tobytes()


def test_planes_are_the_channels() -> None:
    image = noise(7, 5)
    expected = np.stack([np.asarray(channel) for channel in image.split()])
    assert planes(image).shape == (3, 5, 7)
    assert planes(image).flags.c_contiguous
    assert np.array_equal(planes(image), expected)


def test_planes_of_an_image_in_several_pieces_of_memory() -> None:
    image = noise(2400, 2400)  # 23 MB; Pillow's pieces have 16
    assert np.array_equal(planes(image), np.asarray(image).transpose(2, 0, 1))
