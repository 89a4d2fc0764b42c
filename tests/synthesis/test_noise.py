from __future__ import annotations

import torch

from gmail_align.synthesis.sampler import image_seed, initial_noise, step_generator


def test_noise_depends_on_seed_caption_and_number_alone() -> None:
    first = initial_noise(1, "7", 0, (4, 8, 8))
    torch.manual_seed(5)
    assert torch.equal(initial_noise(1, "7", 0, (4, 8, 8)), first)
    others = [initial_noise(*key, (4, 8, 8)) for key in ((2, "7", 0), (1, "8", 0), (1, "7", 1))]
    assert not any(torch.equal(first, other) for other in others)


def test_noise_is_standard_normal() -> None:
    noise = initial_noise(0, "a", 0, (16, 64, 64))
    assert noise.dtype == torch.float32
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_noise_is_the_same_in_every_version() -> None:
    assert image_seed(0, "139", 0) == 4231332438551901276
    assert 0 <= image_seed(3, "x", 2) < 2**63


def test_the_steps_draw_other_noise_than_the_start() -> None:
    again = torch.randn(4, 8, 8, generator=step_generator(1, "7", 0))
    assert not torch.equal(again, initial_noise(1, "7", 0, (4, 8, 8)))
