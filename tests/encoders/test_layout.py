"""Every layout: what is trained, what routes share, and that folders give it back."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu

from gmail_align.encoders.config import EncoderLayout
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.heads import Heads
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError
from worlds.encoders import disturb

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LAYOUTS = [
    EncoderLayout(tune=tune, trunk=trunk, head=head)
    for (tune, trunk), head in zip(
        product(["lora", "full", "none"], ["shared", "separate", "frozen_real"]),
        ["linear", "residual", "mlp"] * 3,
        strict=True,
    )
]


@torch.no_grad()
def _features(encoder: GmailEncoder) -> dict[Route, torch.Tensor]:
    return {route: encoder.embed_pixels(PIXELS, route) for route in Route}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.tune}-{one.trunk}-{one.head}")
def test_routes_share_what_they_should_and_folders_keep_it(
    layout: EncoderLayout, clip_folder: Path, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder, layout=layout)
    plain = _features(encoder)
    if layout.starts_plain:
        assert all(torch.equal(result, plain[Route.FROZEN]) for result in plain.values())
    disturb(encoder, 0.05)
    result = _features(encoder)
    assert torch.equal(result[Route.FROZEN], plain[Route.FROZEN])
    assert not torch.allclose(result[Route.GENERATED], plain[Route.GENERATED])
    on_frozen = layout.tune == "none" or layout.trunk == "frozen_real"
    assert torch.equal(result[Route.REAL], result[Route.REAL_HEAD]) == on_frozen
    with torch.no_grad():
        trunks = [encoder.trunk(PIXELS, route) for route in (Route.REAL, Route.GENERATED)]
    assert torch.equal(*trunks) == encoder.shared
    encoder.save(tmp_path / "saved")
    again = GmailEncoder.from_pretrained(tmp_path / "saved")
    assert again.layout == layout
    assert again.fingerprint == encoder.fingerprint
    for route, expected in result.items():
        assert torch.equal(_features(again)[route], expected)
        assert again.route_fingerprint(route) == encoder.route_fingerprint(route)


@pytest.mark.parametrize("trunk", ["shared", "separate", "frozen_real"])
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_gradients_reach_what_is_trained_and_nothing_else(
    tune: str, trunk: str, clip_folder: Path
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder, layout=EncoderLayout(tune=tune, trunk=trunk))
    disturb(encoder, 0.05)
    real = encoder.project(encoder.lean_trunk(PIXELS, Route.REAL), Route.REAL)
    made = encoder.project(encoder.lean_trunk(PIXELS, Route.GENERATED), Route.GENERATED)
    (real.square().sum() + made.square().sum()).backward()
    reached = {id(p) for p in encoder.parameters() if p.grad is not None}
    assert reached == {id(p) for p in encoder.trainable().values()}
    alone = GmailEncoder.from_clip(clip_folder, layout=EncoderLayout(tune=tune, trunk=trunk))
    alone.embed_pixels(PIXELS, Route.GENERATED).square().sum().backward()
    reached = {id(p) for p in alone.parameters() if p.grad is not None}
    assert reached == {id(p) for p in alone.trainable(real_head=False).values()}


def test_heads_of_every_kind_by_hand(clip_folder: Path) -> None:
    for kind in ("residual", "mlp"):
        encoder = GmailEncoder.from_clip(clip_folder, layout=EncoderLayout(head=kind))
        disturb(encoder, 0.05)
        pooled = torch.randn(3, encoder.width)
        layer = encoder.heads.layers["generated"]
        hidden = gelu(pooled @ layer.inner.T)
        outer = encoder.generated_head if kind == "mlp" else layer.outer
        expected = hidden @ outer.T
        if kind == "residual":
            expected = expected + pooled @ encoder.generated_head.T
        assert torch.allclose(encoder.project(pooled, Route.GENERATED), expected, atol=1e-5)


def test_norms_of_heads_by_hand() -> None:
    pooled = torch.tensor([[0.0, 2.0], [2.0, 6.0]])
    heads = Heads(torch.eye(2), EncoderLayout(norm="batch"), True, 0).eval()
    norm = heads.norms["real"]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.fill_(1.0)
    with heads.learning():
        result = heads(pooled, heads.real, Route.REAL)
    # Means 1 and 4, variances 1 and 4: the rows become -1 and 1 before gain and shift.
    assert torch.allclose(result, torch.tensor([[-1.0, -2.0], [3.0, 4.0]]), atol=1e-4)
    mean, variance = norm.statistics["mean"], norm.statistics["variance"]
    assert torch.allclose(mean, torch.tensor([0.1, 0.4]))
    assert torch.allclose(variance, torch.tensor([0.9 + 0.1 * 2, 0.9 + 0.1 * 8]))
    assert torch.equal(heads.norms["generated"].statistics["mean"], torch.zeros(2))
    by_running = (pooled - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    assert torch.allclose(heads(pooled, heads.real, Route.REAL), by_running)
    gain, shift = norm.affine()
    assert torch.allclose(pooled * gain + shift, by_running)
    layer = Heads(torch.eye(2), EncoderLayout(norm="layer"), True, 0)
    result = layer(pooled, layer.real, Route.REAL)
    assert torch.allclose(result, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), atol=1e-4)
    assert layer.norms["real"].affine() is None
    heads.undo_norms(pooled)
    assert torch.allclose(heads(pooled, heads.real, Route.REAL), pooled, atol=1e-5)
    assert torch.equal(heads(pooled, heads.real, Route.FROZEN), pooled)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_of_heads_are_saved(norm: str, clip_folder: Path, tmp_path: Path) -> None:
    encoder = disturb(GmailEncoder.from_clip(clip_folder, layout=EncoderLayout(norm=norm)), 0.05)
    before = encoder.fingerprint, encoder.route_fingerprint(Route.REAL)
    result = _features(encoder)
    encoder.save(tmp_path / "saved")
    again = GmailEncoder.from_pretrained(tmp_path / "saved")
    assert (again.fingerprint, again.route_fingerprint(Route.REAL)) == before
    assert all(torch.equal(_features(again)[route], result[route]) for route in Route)
    if norm == "batch":
        with torch.no_grad():
            again.heads.norms["real"].statistics["mean"].add_(0.1)
        assert again.route_fingerprint(Route.REAL) != before[1]


def test_first_weights_of_heads(clip_folder: Path) -> None:
    plain = GmailEncoder.from_clip(clip_folder)
    same = GmailEncoder.from_clip(clip_folder, layout=EncoderLayout(head_init="identity"))
    assert torch.equal(same.real_head, torch.eye(24, 32))
    noise = GmailEncoder.from_clip(clip_folder, layout=EncoderLayout(head_init="random"))
    assert not torch.allclose(noise.real_head, plain.real_head)
    assert torch.equal(noise.real_head, noise.generated_head)
    fixed = EncoderLayout(train_heads=False)
    trained = GmailEncoder.from_clip(clip_folder, layout=fixed).trainable()
    assert trained
    assert all(".lora_" in name for name in trained)


def test_a_plain_model_has_nothing_to_train(clip_folder: Path) -> None:
    with pytest.raises(ModelError, match="from_clip"):
        GmailEncoder.from_pretrained(clip_folder).trainable()
