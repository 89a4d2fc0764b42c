"""Initial noise: a pure function of seed, caption and image number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.runtime import stable_seed


def image_seed(seed: int, caption_id: str, k: int) -> int:
    """Return the 63-bit seed of the ``k``-th image of a caption."""
    return stable_seed(seed, caption_id, k)


def initial_noise(seed: int, caption_id: str, k: int, shape: Sequence[int]) -> Float[Tensor, ...]:
    """Draw the noise that an image starts from, on the CPU and in float32.

    Args:
        seed: Seed of the run.
        caption_id: The caption.
        k: Number of the image among those of the caption.
        shape: Shape of one latent, (channels, height, width).

    Returns:
        Standard normal tensor of that shape.
    """
    generator = torch.Generator().manual_seed(image_seed(seed, caption_id, k))
    return torch.randn(tuple(shape), generator=generator)


def step_generator(seed: int, caption_id: str, k: int) -> torch.Generator:
    """Return the source of all further noise of an image, for samplers that add some."""
    return torch.Generator().manual_seed(stable_seed(seed, caption_id, k, "steps"))
