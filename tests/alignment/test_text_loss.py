"""The text terms by kind: each is its formula with the base's scale and bias, and fits its base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize, softplus

from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.pairset import Batch
from gmail_align.alignment.run import Sources, align
from gmail_align.alignment.terms import loss_terms
from gmail_align.alignment.text_loss import TextSide, text_loss_of
from gmail_align.alignment.tokens import embed_tokens, pack
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.long_clip import long_short_loss
from gmail_align.encoders.route import Route
from gmail_align.encoders.siglip import sigmoid_text_loss
from gmail_align.errors import ConfigError
from gmail_align.features.run import extract_texts
from gmail_align.training.config import OptimConfig

TEXTS = AlignWeights(align=0, text_generated=1, text_real=1)


def _batch(dim: int) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    texts, short = torch.randn(2, 5, dim, generator=generator)
    same, same_short = torch.eye(5, dtype=torch.bool), torch.eye(5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    same_short[1, 2] = same_short[2, 1] = True
    return Batch(images[0], images[1], None, texts, same, short=short, same_short=same_short)


def _features(encoder: GmailEncoder, batch: Batch) -> dict[str, torch.Tensor]:
    pre = encoder.preprocess
    real = batch.real
    assert real is not None
    return {
        "text_generated": encoder.embed_pixels(pre.normalise(batch.generated), Route.GENERATED),
        "text_real": encoder.embed_pixels(pre.normalise(real), Route.REAL),
    }


@torch.no_grad()
def test_a_siglip_is_compared_by_its_own_sigmoid(siglip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(siglip_folder)
    batch = _batch(encoder.dim)
    assert batch.same is not None and batch.texts is not None
    terms = loss_terms(encoder, batch, AlignConfig(weights=TEXTS))
    for name, images in _features(encoder, batch).items():
        cosines = normalize(images, dim=-1) @ normalize(batch.texts, dim=-1).T
        logits = cosines * encoder.clip.logit_scale.exp() + encoder.clip.logit_bias
        asked = softplus(logits) * ~batch.same  # a wrong yes
        asked = asked + torch.diag(softplus(-logits.diagonal()))  # a wrong no
        assert float(terms[name]) == pytest.approx(float(asked.sum() / 5), rel=1e-5)
        summed = AlignConfig(weights=TEXTS, positives="sum")
        yes = torch.where(batch.same, softplus(-logits), softplus(logits)).sum() / 5
        assert float(loss_terms(encoder, batch, summed)[name]) == pytest.approx(float(yes))


@torch.no_grad()
def test_the_two_terms_of_long_clip(clip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    batch = _batch(encoder.dim)
    assert batch.texts is not None and batch.short is not None
    terms = loss_terms(encoder, batch, AlignConfig(weights=TEXTS, text_loss="long_short"))
    plain = loss_terms(encoder, batch, AlignConfig(weights=TEXTS))
    for name, images in _features(encoder, batch).items():
        expected = long_short_loss(
            images,
            batch.texts,
            batch.short,
            encoder.logit_scale,
            same=batch.same_short,
            same_long=batch.same,
        )
        assert float(terms[name]) == pytest.approx(float(expected["total"]), rel=1e-5)
        assert float(terms[name]) != pytest.approx(float(plain[name]), rel=1e-2)


def test_the_short_half_reaches_the_images(clip_folder: Path) -> None:
    """Other short captions, another gradient; other long ones likewise."""
    config = AlignConfig(weights=TEXTS, text_loss="long_short")
    batch, gradients = _batch(24), []
    assert batch.texts is not None and batch.short is not None
    for changed in (
        batch,
        dataclasses.replace(batch, short=-batch.short),
        dataclasses.replace(batch, texts=-batch.texts),
    ):
        encoder = GmailEncoder.from_clip(clip_folder)
        loss_terms(encoder, changed, config)["total"].backward()
        assert encoder.generated_head.grad is not None
        gradients.append(encoder.generated_head.grad)
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-4)
    assert not torch.allclose(gradients[0], gradients[2], atol=1e-4)


def test_overconfidence_costs_the_guard_nothing(siglip_folder: Path) -> None:
    """A sigmoid eased without end is a coin for each question: b times ln 2."""
    encoder = GmailEncoder.from_clip(siglip_folder)
    images, texts = torch.randn(2, 6, encoder.dim, generator=torch.Generator().manual_seed(0))
    loss = text_loss_of(encoder, AlignConfig())
    flat = float(loss(images, TextSide(texts), 1e9))
    assert flat == pytest.approx(6 * torch.log(torch.tensor(2.0)).item(), rel=1e-4)
    own = sigmoid_text_loss(images, texts, encoder.logit_scale, encoder.logit_bias)
    assert float(loss(images, TextSide(texts))) == pytest.approx(float(own))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_loss": "sigmoid"}, "needs the bias that a SigLIP was trained with"),
        ({"text_loss": "long_short", "positives": "sum"}, "leave positives and loss_chunk out"),
        ({"text_loss": "long_short", "loss_chunk": 4}, "leave positives and loss_chunk out"),
    ],
)
def test_what_does_not_fit_a_base_is_refused(
    changes: dict[str, Any], said: str, clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    config = AlignConfig(batch_size=6, optim=OptimConfig(steps=1), **changes)
    with pytest.raises(ConfigError, match=said):
        align(
            config, Sources(world.pairs, world.real, world.generated), clip_folder, tmp_path / "out"
        )


@pytest.mark.parametrize("fixture", ["clip_folder", "siglip_folder"])
def test_packed_tokens_give_the_texts_own_features(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    """Whatever stands beside them, and cut at the longest of the batch."""
    encoder = GmailEncoder.from_clip(request.getfixturevalue(fixture), LoraSettings(towers="both"))
    lines = ["a red image", "a", "a blue image of tone 3 4 5 6 7 8 9 10 11"]
    rows = pack(encoder, lines)
    assert rows.shape == (3, 13)
    with torch.no_grad():
        found = embed_tokens(encoder, rows[:2], AlignConfig())
        for row, line in zip(found, lines[:2], strict=True):
            assert torch.allclose(row, encoder.embed_texts([line], Route.REAL)[0], atol=1e-5)
        assert torch.allclose(
            embed_tokens(encoder, rows, AlignConfig()),
            encoder.embed_texts(lines, Route.REAL),
            atol=1e-5,
        )


def test_a_moving_text_tower_reads_no_cached_texts(
    clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    """One cache for both runs: frozen texts stay frozen, moved ones are measured as moved."""
    optim = OptimConfig(steps=6, lr=5e-3, schedule="constant", evaluate_every=3)
    made = {}
    for towers in ("vision", "text", "both"):
        config = AlignConfig(
            batch_size=6,
            holdout=0.25,
            optim=optim,
            select="text_generated",
            lora=LoraSettings.model_validate({"towers": towers}),
        )
        sources = (world.pairs, world.real, world.generated)
        out = tmp_path / towers
        made[towers] = align(
            config, Sources(*sources), clip_folder, out, seed=3, cache=tmp_path / "cache"
        )
    notes = {name: one.manifest["notes"] for name, one in made.items()}
    start = {name: one["guard"]["start"] for name, one in notes.items()}
    assert start["text"] == pytest.approx(start["vision"])  # nothing has moved at step 0
    assert start["both"] == pytest.approx(start["vision"])
    losses = {name: one["guard"]["kept"]["text_generated_loss"] for name, one in notes.items()}
    assert len(set(losses.values())) == 3
    encoder = GmailEncoder.from_pretrained(made["both"].folder)
    assert encoder.applied
    assert not torch.allclose(
        encoder.embed_texts(["a red image"], Route.REAL),
        encoder.embed_texts(["a red image"], Route.FROZEN),
    )
    plain = GmailEncoder.from_pretrained(clip_folder)
    own, frozen = (
        extract_texts(world.captions, encoder, tmp_path / str(route), route=route)
        for route in (Route.REAL, Route.FROZEN)
    )
    again = extract_texts(world.captions, plain, tmp_path / str(Route.FROZEN), route=Route.REAL)
    assert again.fingerprint == frozen.fingerprint != own.fingerprint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": {"text_generated": 0, "text_real": 0}}, "which no term of this loss trains"),
        ({"encoder": {"tune": "full"}}, "encoder.tune is full"),
    ],
)
def test_a_text_adapter_that_nothing_trains_is_refused(
    changes: dict[str, Any], said: str, clip_folder: Path, world: Any, tmp_path: Path
) -> None:
    config = AlignConfig.model_validate({"lora": {"towers": "both"}, **changes})
    with pytest.raises(ConfigError, match=said):
        align(
            config, Sources(world.pairs, world.real, world.generated), clip_folder, tmp_path / "out"
        )
