"""The terms of a batch against transformers, route by route, and the guard against plain loops."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.guard import EASE, HeldOut, guard_metrics
from gmail_align.alignment.losses import (
    alignment_loss,
    contrastive_text_loss,
    distillation_loss,
    norm_loss,
)
from gmail_align.alignment.pairset import Batch, Tables
from gmail_align.alignment.terms import learned_temperature, loss_terms
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.features.pixels import Pixels
from gmail_align.features.store import Features

NONE = tuple(AlignWeights.model_fields)
ALL = AlignWeights(align=0.5, text_generated=2.0, text_real=3.0, distill_real=4.0)


@pytest.fixture
def encoder(clip_folder: Path) -> GmailEncoder:
    encoder = GmailEncoder.from_clip(clip_folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 6, 3, 32, 32), dtype=torch.uint8, generator=generator)
    frozen, texts = torch.randn(2, 6, 24, generator=generator)
    same = torch.eye(6, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    return Batch(images[0], images[1], frozen, texts, same)


@pytest.mark.parametrize("direction", ["g2r", "r2g", "both"])
def test_terms_are_the_losses_of_the_routes(
    direction: Any, encoder: GmailEncoder, batch: Batch
) -> None:
    config = AlignConfig(weights=ALL, temperature=0.2, direction=direction)
    terms = loss_terms(encoder, batch, config)
    pre, scale, same = encoder.preprocess, encoder.logit_scale, batch.same
    generated = encoder.embed_pixels(pre.normalise(batch.generated), Route.GENERATED)
    assert batch.real is not None
    assert batch.frozen is not None
    real = encoder.embed_pixels(pre.normalise(batch.real), Route.REAL)
    there = alignment_loss(generated, batch.frozen, temperature=0.2, same=same)
    back = alignment_loss(batch.frozen, generated, temperature=0.2, same=same)
    expected = {
        "align": {"g2r": there, "r2g": back, "both": (there + back) / 2}[direction],
        "text_generated": contrastive_text_loss(generated, batch.texts, scale, same),
        "text_real": contrastive_text_loss(real, batch.texts, scale, same),
        "distill_real": distillation_loss(real, batch.frozen),
    }
    expected["total"] = sum(getattr(ALL, name) * term for name, term in expected.items())
    cosines = torch.nn.functional.cosine_similarity(generated, batch.frozen)
    expected["paired_cosine"] = cosines.mean()
    assert list(terms) == list(expected)
    for name, term in terms.items():
        assert torch.allclose(term, expected[name], atol=1e-5), name


def test_each_optional_term_is_what_it_says(encoder: GmailEncoder, batch: Batch) -> None:
    width = encoder.width
    patches = torch.randn(6, width, generator=torch.Generator().manual_seed(7))
    batch = dataclasses.replace(batch, real=None, patches=patches)
    pixels = encoder.preprocess.normalise(batch.generated)
    generated = encoder.embed_pixels(pixels, Route.GENERATED)
    assert batch.frozen is not None
    cosines = torch.nn.functional.cosine_similarity(generated, batch.frozen)
    hidden = encoder.clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    expected = {
        "distill_generated": 1 - cosines.mean(),
        "norm": norm_loss(generated, batch.frozen),
        "patch": alignment_loss(
            hidden[:, 1:].mean(dim=1), patches, temperature=0.2, same=batch.same
        ),
    }
    for name, value in expected.items():
        weights = AlignWeights(**{**dict.fromkeys(NONE, 0.0), name: 0.5})
        assert weights.needs_frozen
        assert not weights.needs_real
        terms = loss_terms(encoder, batch, AlignConfig(weights=weights, temperature=0.2))
        assert list(terms) == [name, "total", "paired_cosine"]
        assert torch.allclose(terms[name], value, atol=1e-5), name
        assert torch.equal(terms["total"], 0.5 * terms[name])


def test_positives_and_a_learned_temperature_reach_the_terms(
    encoder: GmailEncoder, batch: Batch
) -> None:
    config = AlignConfig(temperature=0.2, positives="sum")
    log_scale = torch.tensor(-math.log(0.4), requires_grad=True)
    terms = loss_terms(encoder, batch, config, log_scale)
    pixels = encoder.preprocess.normalise(batch.generated)
    generated = encoder.embed_pixels(pixels, Route.GENERATED)
    assert batch.frozen is not None
    summed = {"same": batch.same, "positives": "sum"}
    expected = alignment_loss(generated, batch.frozen, temperature=0.4, **summed)
    assert torch.allclose(terms["align"], expected, atol=1e-5)
    texts = contrastive_text_loss(generated, batch.texts, encoder.logit_scale, **summed)
    assert torch.allclose(terms["text_generated"], texts, atol=1e-5)
    terms["total"].backward()
    assert log_scale.grad is not None
    assert float(log_scale.grad) != 0.0
    cold = torch.tensor(9.0)
    assert float(learned_temperature(cold)) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("preset", "names", "untouched"),
    [
        ("gmail", {"align", "text_generated", "text_real"}, set()),
        ("eq1_only", {"align"}, {"real_head"}),
        ("lora_only", {"text_generated"}, {"real_head"}),
    ],
)
def test_presets_compute_only_what_they_need(
    preset: str, names: set[str], untouched: set[str], encoder: GmailEncoder, batch: Batch
) -> None:
    config = AlignConfig.from_preset(preset)
    if not config.weights.needs_real:
        batch = Batch(batch.generated, None, batch.frozen, batch.texts, batch.same)
    if config.weights.align == 0:
        batch = Batch(batch.generated, batch.real, None, batch.texts, batch.same)
    terms = loss_terms(encoder, batch, config)
    assert set(terms) - {"paired_cosine"} == names | {"total"}
    assert ("paired_cosine" in terms) == config.weights.needs_frozen
    terms["total"].backward()
    trained = encoder.trainable(real_head=config.weights.needs_real)
    assert {n for n, p in encoder.named_parameters() if p.grad is not None} == set(trained)
    assert set(encoder.trainable()) - set(trained) == untouched


def test_bfloat16_stays_near_fp32_and_losses_are_fp32(encoder: GmailEncoder, batch: Batch) -> None:
    full = loss_terms(encoder, batch, AlignConfig(weights=ALL))
    half = loss_terms(encoder, batch, AlignConfig(weights=ALL, precision="bfloat16"))
    for name, term in half.items():
        assert term.dtype == torch.float32
        assert float(term.detach()) == pytest.approx(float(full[name].detach()), rel=0.1)


def test_presets_and_what_they_guard() -> None:
    assert AlignConfig.from_preset("gmail") == AlignConfig()
    assert AlignConfig.from_preset("eq1_only").guarded == "align"
    assert AlignConfig.from_preset("lora_only").guarded == "text_generated"
    assert AlignConfig(select="objective").guarded == "objective"
    only = AlignWeights(align=0, text_generated=0, text_real=0, distill_real=1)
    assert AlignConfig(weights=only).guarded == "objective"


def _held(batch: Batch) -> tuple[HeldOut, Tables]:
    """Six pairs of four real images."""
    image_of = np.array([0, 0, 1, 2, 3, 3])
    assert batch.real is not None
    assert batch.frozen is not None
    names = [f"i{number}" for number in range(6)]
    tables = Tables(
        Pixels(names, batch.generated),
        Pixels(names, batch.real),
        Features(names, batch.frozen),
        Features(names, batch.texts),
    )
    groups = torch.from_numpy(image_of)
    same = groups[:, None] == groups[None, :]
    rows = np.arange(6)
    return HeldOut(rows, rows[:4], batch.frozen[:4], batch.texts, image_of, same), tables


@pytest.mark.parametrize(
    "select",
    ["align", "text_generated", "text_real", "objective", "margin", "retrieval"],
)
@torch.no_grad()
def test_guard_metrics_by_plain_loops(select: Any, encoder: GmailEncoder, batch: Batch) -> None:
    held, tables = _held(batch)
    config = AlignConfig(weights=ALL, batch_size=4, select=select, direction="r2g")
    found = guard_metrics(encoder, held, tables, config)
    pre, owner = encoder.preprocess, held.image_of.tolist()
    assert batch.real is not None
    generated = encoder.embed_pixels(pre.normalise(batch.generated), Route.GENERATED)
    real = encoder.embed_pixels(pre.normalise(batch.real[:4]), Route.REAL)
    to_real = (normalize(generated) @ normalize(held.frozen).T).tolist()
    to_text = (normalize(real) @ normalize(held.texts).T).tolist()
    paired = [to_real[i][owner[i]] for i in range(6)]
    others = [to_real[i][j] for i in range(6) for j in range(4) if j != owner[i]]
    hits = [max(range(4), key=lambda j, i=i: to_real[i][j]) == owner[i] for i in range(6)]
    text_hits = [owner[max(range(6), key=lambda j, i=i: to_text[i][j])] == i for i in range(4)]
    scale, same = encoder.logit_scale, held.same
    losses = {
        "align": alignment_loss(generated, held.frozen[owner], same=same),
        "text_generated": contrastive_text_loss(generated, held.texts, scale, same),
        "text_real": contrastive_text_loss(real[owner], held.texts, scale, same),
        "distill_real": distillation_loss(real, held.frozen),
        "distill_generated": distillation_loss(generated, held.frozen[owner]),
        "norm": norm_loss(generated, held.frozen[owner]),
    }
    expected = {f"{name}_loss": float(loss) for name, loss in losses.items()}
    free = {"distill_real": float(losses["distill_real"])}
    for ease in EASE:
        eased = {
            "align": alignment_loss(
                generated, held.frozen[owner], temperature=0.07 * ease, same=same
            ),
            "text_generated": contrastive_text_loss(generated, held.texts, scale / ease, same),
            "text_real": contrastive_text_loss(real[owner], held.texts, scale / ease, same),
        }
        free |= {name: min(float(loss), free.get(name, 99.0)) for name, loss in eased.items()}
    free["objective"] = sum(getattr(ALL, name) * value for name, value in free.items())
    if select in free:
        expected["score"] = -free[select]
    expected["paired_cosine"] = sum(paired) / 6
    expected["margin"] = sum(paired) / 6 - sum(others) / len(others)
    expected["generated_real_r1"] = sum(hits) / 6
    expected["real_text_r1"] = sum(text_hits) / 4
    back = [owner[j] == max(range(4), key=lambda i, j=j: to_text[i][j]) for j in range(6)]
    expected["text_real_r1"] = sum(back) / 6
    expected["retrieval"] = (sum(text_hits) / 4 + sum(back) / 6) / 2
    made_text = (normalize(generated) @ normalize(held.texts).T).tolist()
    there = [same[i, max(range(6), key=lambda j, i=i: made_text[i][j])] for i in range(6)]
    expected["generated_text_r1"] = sum(map(int, there)) / 6
    there = [same[max(range(6), key=lambda i, j=j: made_text[i][j]), j] for j in range(6)]
    expected["text_generated_r1"] = sum(map(int, there)) / 6
    if select in expected:
        expected["score"] = expected[select]
    assert found == pytest.approx(expected, abs=1e-5)


def test_guessing_is_no_better_than_a_confident_wrong_start(
    encoder: GmailEncoder, batch: Batch
) -> None:
    held, tables = _held(batch)
    chance = sum(math.log(7 - int(row.sum())) for row in held.same) / 6
    config = AlignConfig(temperature=0.001)
    wrong = guard_metrics(encoder, held, tables, config)
    assert wrong["align_loss"] > 2 * chance
    assert wrong["score"] >= -chance - 1e-5
    with torch.no_grad():
        encoder.generated_head.zero_()
    collapsed = guard_metrics(encoder, held, tables, config)
    assert collapsed["align_loss"] == pytest.approx(chance)
    assert collapsed["score"] <= wrong["score"]


def test_steps_that_harm_the_deployed_route_are_blocked(
    encoder: GmailEncoder, batch: Batch
) -> None:
    """Retrieval of the plain features is perfect, that of the moved encoder is not."""
    held, tables = _held(batch)
    perfect = dataclasses.replace(held, texts=held.frozen[held.image_of])
    free = guard_metrics(encoder, perfect, tables, AlignConfig(select="margin"))
    assert free["retrieval"] < 0.9
    loss = 1 - free["retrieval"]
    for allowed, blocked in ((0.0, True), (loss - 0.01, True), (loss + 0.01, False)):
        config = AlignConfig(select="margin", keep_real=allowed)
        found = guard_metrics(encoder, perfect, tables, config)
        assert found["score"] == (-1e6 if blocked else free["margin"])


def test_ties_are_misses(encoder: GmailEncoder, batch: Batch) -> None:
    held, tables = _held(batch)
    flat = HeldOut(
        held.generated,
        held.real,
        torch.ones_like(held.frozen),
        torch.ones_like(held.texts),
        held.image_of,
        held.same,
    )
    found = guard_metrics(encoder, flat, tables, AlignConfig())
    assert found["generated_real_r1"] == 0.0
    assert found["real_text_r1"] == 0.0
    assert found["margin"] == pytest.approx(0.0, abs=1e-6)
