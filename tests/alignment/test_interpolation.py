"""Interpolation between the plain CLIP and the kept step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gmail_align.alignment.interpolation import choose_strength, interpolate
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route


def test_both_ends_and_the_middle(clip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    trained = encoder.trainable()
    start = {name: p.detach().clone() for name, p in trained.items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    end = {name: p.detach().clone() for name, p in trained.items()}
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    layer = encoder._trunk._layers[0]

    def put(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            for name, value in interpolate(start, end, strength).items():
                trained[name].copy_(value)
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        return encoder.embed_pixels(pixels, Route.GENERATED), update

    features, whole = put(1.0)
    assert all(torch.equal(trained[name], end[name]) for name in end)
    plain, nothing = put(0.0)
    assert torch.allclose(plain, encoder.embed_pixels(pixels, Route.FROZEN), atol=1e-6)
    assert not torch.allclose(plain, features)
    assert float(nothing.detach().abs().max()) == 0.0
    _, half = put(0.5)
    assert torch.allclose(half, whole / 2, atol=1e-7)
    assert torch.allclose(encoder.real_head, (start["real_head"] + end["real_head"]) / 2, atol=1e-6)


@pytest.mark.parametrize(("best", "kept"), [(0.3, 0.25), (0.75, 1.0), (0.5, 0.5)])
def test_the_best_strength_is_kept_and_ties_go_to_the_whole_step(best: float, kept: float) -> None:
    parameter = nn.Parameter(torch.tensor([4.0]))

    def evaluate() -> dict[str, float]:
        return {"score": -round(abs(float(parameter.detach()) / 4 - best), 6)}

    rows = choose_strength(
        {"head": parameter}, {"head": torch.zeros(1)}, (0.5, 0.25, 1.0), evaluate
    )
    assert [row["strength"] for row in rows] == [0.25, 0.5, 1.0]
    assert [row["strength"] for row in rows if row["kept"]] == [kept]
    assert float(parameter.detach()) == pytest.approx(4 * kept)
