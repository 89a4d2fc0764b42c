"""The text terms by kind: each is its formula with the base's scale and bias, and fits its base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize, softplus

from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.embedding import Batch, loss_terms
from gmail_align.alignment.run import Sources, align
from gmail_align.alignment.terms import TERMS, comparison
from gmail_align.alignment.tokens import embed_tokens, pack
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.features.run import extract_texts
from gmail_align.training.config import OptimConfig
from gmail_align.training.losses import long_short_losses, sigmoid_text_losses

TEXTS = AlignWeights(align=0, text_generated=1, text_real=1)


def _batch(dim: int) -> Batch:
    """Five pairs: 0 and 3 share an image, 1 and 2 share a first sentence."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    texts, short = torch.randn(2, 5, dim, generator=generator)
    groups = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 1], [0, 3, 3], [4, 4, 4]])
    inputs = {"generated": images[0], "real": images[1]}
    return Batch(inputs, {"texts": texts, "short": short}, groups)


def _same(batch: Batch, columns: list[int]) -> torch.Tensor:
    groups = batch.groups[:, columns]
    return (groups[:, None] == groups[None]).any(dim=-1)


def _features(encoder: GmailEncoder, batch: Batch) -> dict[str, torch.Tensor]:
    pre, routes = encoder.preprocess, {"generated": Route.GENERATED, "real": Route.REAL}
    return {
        f"text_{name}": encoder.embed_pixels(pre.normalise(batch.inputs[name]), route)
        for name, route in routes.items()
    }


@torch.no_grad()
def test_a_siglip_is_compared_by_its_own_sigmoid(siglip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(siglip_folder)
    batch = _batch(encoder.dim)
    texts, same = batch.known["texts"], _same(batch, [0, 1])
    terms = loss_terms(encoder, batch, AlignConfig(weights=TEXTS))
    for name, images in _features(encoder, batch).items():
        cosines = normalize(images, dim=-1) @ normalize(texts, dim=-1).T
        logits = cosines * encoder.clip.logit_scale.exp() + encoder.clip.logit_bias
        asked = softplus(logits) * ~same  # a wrong yes
        asked = asked + torch.diag(softplus(-logits.diagonal()))  # a wrong no
        assert float(terms[name]) == pytest.approx(float(asked.sum() / 5), rel=1e-5)
        summed = AlignConfig(weights=TEXTS, positives="sum")
        yes = torch.where(same, softplus(-logits), softplus(logits)).sum() / 5
        assert float(loss_terms(encoder, batch, summed)[name]) == pytest.approx(float(yes))


@torch.no_grad()
def test_the_two_terms_of_long_clip(clip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    batch = _batch(encoder.dim)
    terms = loss_terms(encoder, batch, AlignConfig(weights=TEXTS, text_loss="long_short"))
    plain = loss_terms(encoder, batch, AlignConfig(weights=TEXTS))
    for name, images in _features(encoder, batch).items():
        expected = long_short_losses(
            images,
            batch.known["texts"],
            batch.known["short"],
            encoder.logit_scale,
            same=_same(batch, [0, 2]),
            same_long=_same(batch, [0, 1]),
        )
        assert float(terms[name]) == pytest.approx(float(expected["total"].mean()), rel=1e-5)
        assert float(terms[name]) != pytest.approx(float(plain[name]), rel=1e-2)


def test_the_short_half_reaches_the_images(clip_folder: Path) -> None:
    """Other short captions, another gradient; other long ones likewise."""
    config = AlignConfig(weights=TEXTS, text_loss="long_short")
    batch, gradients = _batch(24), []
    turned = [{name: -batch.known[name]} for name in ("short", "texts")]
    for changes in ({}, *turned):
        changed = dataclasses.replace(batch, known={**batch.known, **changes})
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
    groups = torch.arange(6)[:, None].repeat(1, 3)
    how = comparison(encoder, groups, AlignConfig())
    term = next(term for term in TERMS if term.name == "text_generated")
    features = {"generated": images, "texts": texts}
    flat = float(term.losses(features, how.eased(1e9)).mean())
    assert flat == pytest.approx(6 * torch.log(torch.tensor(2.0)).item(), rel=1e-4)
    own = sigmoid_text_losses(images, texts, encoder.logit_scale, encoder.backbone.logit_bias)
    assert torch.allclose(term.losses(features, how), own)


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
        result = embed_tokens(encoder, rows[:2], AlignConfig())
        for row, line in zip(result, lines[:2], strict=True):
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
            apply="best",
            keep_real=None,
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
    config = AlignConfig.model_validate(
        {"lora": {"towers": "both"}, "optim": {"steps": 1}, **changes}
    )
    with pytest.raises(ConfigError, match=said):
        align(
            config, Sources(world.pairs, world.real, world.generated), clip_folder, tmp_path / "out"
        )
