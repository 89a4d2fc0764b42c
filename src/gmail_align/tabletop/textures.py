"""The four floors and their walls: seamless patterns, made once and kept."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

PERIOD: Final = 12.0
"""Units after which every pattern repeats."""
_FINEST: Final = 1024


def linear(rgb: tuple[int, int, int]) -> FloatArray:
    """Return a display colour (0 to 255) as linear light (0 to 1)."""
    return ((np.array(rgb, dtype=np.float32) / 255.0) ** 2.2).astype(np.float32)


WALLS: Final[dict[str, tuple[FloatArray, FloatArray, FloatArray]]] = {
    "wooden": (linear((236, 224, 204)), linear((214, 198, 174)), linear((250, 246, 238))),
    "grey": (linear((196, 202, 210)), linear((160, 168, 180)), linear((176, 180, 186))),
    "tiled": (linear((214, 230, 226)), linear((176, 204, 202)), linear((246, 246, 240))),
    "grassy": (linear((226, 238, 246)), linear((112, 172, 232)), linear((214, 230, 226))),
}
"""Colours of each wall at its foot, high up, and of its skirting."""


@lru_cache(maxsize=16)
def floor_texture(floor: str, side: int) -> FloatArray:
    """Return the floor's pattern in linear light over one period.

    Args:
        floor: One of ``scenes.FLOORS``.
        side: Texels along a side: a power of two up to 1024.

    Returns:
        Array of shape (side, side, 3), rows along y and columns along x.
    """
    finest = _MAKERS[floor]() if side == _FINEST else floor_texture(floor, _FINEST)
    step = _FINEST // side
    reduced = finest.reshape(side, step, side, step, 3).mean(axis=(1, 3), dtype=np.float32)
    return np.ascontiguousarray(reduced, dtype=np.float32)


def _noise(seed: int, along_x: float, along_y: float) -> FloatArray:
    """Return seamless noise of mean 0 and deviation 1, its grains about so many units long."""
    white = np.random.default_rng(seed).standard_normal((_FINEST, _FINEST))
    frequency = np.fft.fftfreq(_FINEST, d=PERIOD / _FINEST)
    across = np.exp(-0.5 * (frequency * along_x * 2.0) ** 2)
    away = np.exp(-0.5 * (frequency * along_y * 2.0) ** 2)
    smooth = np.fft.ifft2(np.fft.fft2(white) * away[:, None] * across[None, :]).real
    return np.asarray(smooth / smooth.std(), dtype=np.float32)


def _grid() -> tuple[FloatArray, FloatArray]:
    """Return x along columns and y along rows of the finest pattern, in units."""
    line = ((np.arange(_FINEST, dtype=np.float32) + 0.5) * np.float32(PERIOD / _FINEST)).astype(
        np.float32
    )
    return line[None, :], line[:, None]


def _wooden() -> FloatArray:
    """Return warm planks with grain, each plank of its own tone, dark seams between."""
    x, y = _grid()
    row = np.floor(y / 0.75).astype(np.int64)
    rng = np.random.default_rng(11)
    shifted = (x + rng.uniform(0.0, 6.0, 16)[row]) % PERIOD
    board = np.floor(shifted / 4.0).astype(np.int64)
    tone = rng.uniform(0.74, 1.16, (16, 3))[row, board]
    warmth = rng.uniform(-0.05, 0.05, (16, 3))[row, board]
    grain = (
        0.07 * _noise(12, 1.4, 0.035) + 0.07 * _noise(13, 3.0, 0.12) + 0.03 * _noise(14, 0.2, 0.02)
    )
    edge = np.minimum(
        np.minimum(y % 0.75, 0.75 - y % 0.75) + 0 * x,
        np.minimum(shifted % 4.0, 4.0 - shifted % 4.0),
    )
    seam = 0.42 + 0.58 * np.clip((edge - 0.012) / 0.03, 0.0, 1.0)
    shade = (tone * (1.0 + grain) * seam)[..., None]
    base = linear((198, 142, 88)) * (1.0 + warmth[..., None] * np.array([0.6, 0.0, -1.2]))
    return np.asarray(np.clip(base * shade, 0.0, 1.0), dtype=np.float32)


def _grey() -> FloatArray:
    """Return smooth concrete: soft clouds and fine speckle."""
    cloud = (
        0.07 * _noise(21, 1.6, 1.6) + 0.05 * _noise(22, 0.5, 0.5) + 0.04 * _noise(23, 0.04, 0.04)
    )
    return np.asarray(
        np.clip(linear((146, 147, 150)) * (1.0 + cloud[..., None]), 0.0, 1.0), dtype=np.float32
    )


def _tiled() -> FloatArray:
    """Return a checkerboard of cream and dusty blue tiles with pale grout."""
    x, y = _grid()
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    dark = ((column + row) % 2).astype(np.float32)[..., None]
    tone = np.random.default_rng(31).uniform(0.92, 1.07, (12, 12))[row, column][..., None]
    marble = (1.0 + 0.035 * _noise(32, 0.35, 0.35) + 0.02 * _noise(33, 0.05, 0.05))[..., None]
    tile = (linear((232, 222, 204)) * (1.0 - dark) + linear((96, 122, 148)) * dark) * tone * marble
    edge = np.minimum(
        np.minimum(x % 1.0, 1.0 - x % 1.0) + 0 * y, np.minimum(y % 1.0, 1.0 - y % 1.0) + 0 * x
    )
    inside = np.clip((edge - 0.022) / 0.015, 0.0, 1.0)[..., None]
    return np.asarray(
        np.clip(tile * inside + linear((186, 180, 170)) * (1.0 - inside), 0.0, 1.0),
        dtype=np.float32,
    )


def _grassy() -> FloatArray:
    """Return a lawn: patches of tone, tufts and fine blades."""
    patch, tuft = _noise(41, 1.2, 1.2), _noise(42, 0.16, 0.3)
    blade = _noise(43, 0.028, 0.16)
    mix = np.clip(0.45 + 0.10 * patch + 0.13 * tuft + 0.15 * blade, 0.0, 1.0)[..., None]
    colour = linear((46, 84, 22)) * (1.0 - mix) + linear((150, 184, 62)) * mix
    return np.asarray(np.clip(colour * (1.0 + 0.10 * blade[..., None]), 0.0, 1.0), dtype=np.float32)


_MAKERS: Final = {"wooden": _wooden, "grey": _grey, "tiled": _tiled, "grassy": _grassy}
