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

from gmail_align.alignment import guard as guard_module
from gmail_align.alignment import terms as terms_module
from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.embedding import (
    Batch,
    learned_temperature,
    loss_terms,
    piecewise_terms,
)
from gmail_align.alignment.guard import EASE, Guard
from gmail_align.alignment.losses import alignment_loss, distillation_losses, norm_losses
from gmail_align.alignment.pair_index import COLUMNS
from gmail_align.alignment.task import HeldOut, Table, Tables
from gmail_align.alignment.terms import needed_features
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.training.losses import contrastive_text_losses

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
    groups = torch.tensor([[n, n, n] for n in (0, 1, 2, 0, 4, 5)])
    inputs = {"generated": images[0], "real": images[1]}
    return Batch(inputs, {"frozen": frozen, "texts": texts}, groups)


def contrastive_text_loss(*given: Any, **options: Any) -> torch.Tensor:
    return contrastive_text_losses(*given, **options).mean()


def distillation_loss(*given: Any) -> torch.Tensor:
    return distillation_losses(*given).mean()


def _same(batch: Batch) -> torch.Tensor:
    return batch.groups[:, None, 0] == batch.groups[None, :, 0]


@pytest.mark.parametrize("direction", ["g2r", "r2g", "both"])
def test_terms_are_the_losses_of_the_routes(
    direction: Any, encoder: GmailEncoder, batch: Batch
) -> None:
    config = AlignConfig(weights=ALL, temperature=0.2, direction=direction)
    terms = loss_terms(encoder, batch, config)
    pre, scale, same = encoder.preprocess, encoder.logit_scale, _same(batch)
    generated = encoder.embed_pixels(pre.normalise(batch.inputs["generated"]), Route.GENERATED)
    real = encoder.embed_pixels(pre.normalise(batch.inputs["real"]), Route.REAL)
    there = alignment_loss(generated, batch.known["frozen"], temperature=0.2, same=same)
    back = alignment_loss(batch.known["frozen"], generated, temperature=0.2, same=same)
    expected = {
        "align": {"g2r": there, "r2g": back, "both": (there + back) / 2}[direction],
        "text_generated": contrastive_text_loss(generated, batch.known["texts"], scale, same),
        "text_real": contrastive_text_loss(real, batch.known["texts"], scale, same),
        "distill_real": distillation_loss(real, batch.known["frozen"]),
    }
    expected["total"] = sum(getattr(ALL, name) * term for name, term in expected.items())
    cosines = torch.nn.functional.cosine_similarity(generated, batch.known["frozen"])
    expected["paired_cosine"] = cosines.mean()
    assert list(terms) == list(expected)
    for name, term in terms.items():
        assert torch.allclose(term, expected[name], atol=1e-5), name


def test_each_optional_term_is_what_it_says(encoder: GmailEncoder, batch: Batch) -> None:
    width = encoder.width
    patches = torch.randn(6, width, generator=torch.Generator().manual_seed(7))
    known = {**batch.known, "frozen_patches": patches}
    batch = Batch({"generated": batch.inputs["generated"]}, known, batch.groups)
    pixels = encoder.preprocess.normalise(batch.inputs["generated"])
    generated = encoder.embed_pixels(pixels, Route.GENERATED)
    cosines = torch.nn.functional.cosine_similarity(generated, batch.known["frozen"])
    hidden = encoder.clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    expected = {
        "distill_generated": 1 - cosines.mean(),
        "norm": norm_losses(generated, batch.known["frozen"]).mean(),
        "patch": alignment_loss(
            hidden[:, 1:].mean(dim=1), patches, temperature=0.2, same=_same(batch)
        ),
    }
    for name, value in expected.items():
        weights = AlignWeights(**{**dict.fromkeys(NONE, 0.0), name: 0.5})
        needs = needed_features(AlignConfig(weights=weights))
        assert needs & {"frozen", "frozen_patches"}
        assert "real" not in needs
        terms = loss_terms(encoder, batch, AlignConfig(weights=weights, temperature=0.2))
        assert list(terms) == [name, "total", "paired_cosine"]
        assert torch.allclose(terms[name], value, atol=1e-5), name
        assert torch.equal(terms["total"], 0.5 * terms[name])


def test_a_term_is_a_value_and_a_weight(
    encoder: GmailEncoder, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Weights(AlignWeights):
        apart: float = 0.0

    def losses(features: Any, how: Any) -> torch.Tensor:
        return (features["generated"] - features["frozen"]).square().sum(1)

    term = terms_module.Term("apart", frozenset({"generated", "frozen"}), losses)
    monkeypatch.setattr(terms_module, "TERMS", (*terms_module.TERMS, term))
    weights = Weights(**{**dict.fromkeys(NONE, 0.0), "apart": 0.5})
    config = AlignConfig(weights=weights, micro_batch=2)
    assert needed_features(config) == {"generated", "frozen"}
    batch = Batch({"generated": batch.inputs["generated"]}, batch.known, batch.groups)
    terms, pieces = loss_terms(encoder, batch, config), piecewise_terms(encoder, batch, config)
    pixels = encoder.preprocess.normalise(batch.inputs["generated"])
    apart = encoder.embed_pixels(pixels, Route.GENERATED) - batch.known["frozen"]
    assert torch.allclose(terms["apart"], apart.square().sum(1).mean(), atol=1e-5)
    assert torch.allclose(terms["total"], pieces.terms["total"], atol=1e-5)


def test_positives_and_a_learned_temperature_reach_the_terms(
    encoder: GmailEncoder, batch: Batch
) -> None:
    config = AlignConfig(temperature=0.2, positives="sum")
    log_scale = torch.tensor(-math.log(0.4), requires_grad=True)
    terms = loss_terms(encoder, batch, config, log_scale)
    pixels = encoder.preprocess.normalise(batch.inputs["generated"])
    generated = encoder.embed_pixels(pixels, Route.GENERATED)
    summed = {"same": _same(batch), "positives": "sum"}
    expected = alignment_loss(generated, batch.known["frozen"], temperature=0.4, **summed)
    assert torch.allclose(terms["align"], expected, atol=1e-5)
    texts = contrastive_text_loss(generated, batch.known["texts"], encoder.logit_scale, **summed)
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
    needs = needed_features(config)
    inputs, known = (
        {name: rows for name, rows in table.items() if name in needs}
        for table in (batch.inputs, batch.known)
    )
    terms = loss_terms(encoder, Batch(inputs, known, batch.groups), config)
    assert set(terms) - {"paired_cosine"} == names | {"total"}
    assert ("paired_cosine" in terms) == ("frozen" in needs)
    terms["total"].backward()
    trained = encoder.trainable(real_head="real" in needs)
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
    assert AlignConfig.from_preset("eq1_only").guarded == "transfer"
    assert AlignConfig.from_preset("eq1_only", {"select": "loss"}).guarded == "align"
    assert AlignConfig.from_preset("lora_only").guarded == "text_generated"
    assert AlignConfig.from_preset("lora_only").keep_real is None, "the control sees no real image"
    assert AlignConfig(select="objective").guarded == "objective"
    only = AlignWeights(align=0, text_generated=0, text_real=0, distill_real=1)
    assert AlignConfig(weights=only, select="loss").guarded == "objective"


def _held(batch: Batch, **known: torch.Tensor) -> HeldOut:
    """Six pairs of four real images, with a text each."""
    image_of = np.array([0, 0, 1, 2, 3, 3])
    rows = np.arange(6)
    pairs = np.stack([rows, image_of, rows, rows, rows], axis=1).astype(np.int32)
    given = {"frozen": batch.known["frozen"][:4], "texts": batch.known["texts"], **known}
    columns = {"generated": "generated", "real": "real", "frozen": "real", "texts": "text"}
    inputs, frozen = (
        {name: Table(array, columns[name]) for name, array in table.items()}
        for table in (batch.inputs, given)
    )
    return HeldOut(pairs, np.array([0, 2, 3, 4]), image_of, Tables(inputs, frozen))


@pytest.mark.parametrize(
    "select",
    ["align", "text_generated", "text_real", "objective", "margin", "retrieval", "transfer"],
)
@torch.no_grad()
def test_guard_metrics_by_plain_loops(select: Any, encoder: GmailEncoder, batch: Batch) -> None:
    held = _held(batch)
    frozen, texts = (held.tables.known[name].array for name in ("frozen", "texts"))
    config = AlignConfig(weights=ALL, batch_size=4, select=select, direction="r2g")
    result = Guard(encoder, held, config).metrics()
    pre, owner = encoder.preprocess, held.image_of.tolist()
    generated = encoder.embed_pixels(pre.normalise(batch.inputs["generated"]), Route.GENERATED)
    real = encoder.embed_pixels(pre.normalise(batch.inputs["real"][:4]), Route.REAL)
    to_real = (normalize(generated) @ normalize(frozen).T).tolist()
    to_text = (normalize(real) @ normalize(texts).T).tolist()
    paired = [to_real[i][owner[i]] for i in range(6)]
    others = [to_real[i][j] for i in range(6) for j in range(4) if j != owner[i]]
    hits = [max(range(4), key=lambda j, i=i: to_real[i][j]) == owner[i] for i in range(6)]
    text_hits = [owner[max(range(6), key=lambda j, i=i: to_text[i][j])] == i for i in range(4)]
    scale = encoder.logit_scale
    same = torch.from_numpy(held.image_of[:, None] == held.image_of[None])
    losses = {
        "align": alignment_loss(generated, frozen[owner], same=same),
        "text_generated": contrastive_text_loss(generated, texts, scale, same),
        "text_real": contrastive_text_loss(real[owner], texts, scale, same),
        "distill_real": distillation_loss(real, frozen),
        "distill_generated": distillation_loss(generated, frozen[owner]),
        "norm": norm_losses(generated, frozen[owner]).mean(),
    }
    expected = {f"{name}_loss": float(loss) for name, loss in losses.items()}
    free = {"distill_real": float(losses["distill_real"])}
    for ease in EASE:
        eased = {
            "align": alignment_loss(generated, frozen[owner], temperature=0.07 * ease, same=same),
            "text_generated": contrastive_text_loss(generated, texts, scale / ease, same),
            "text_real": contrastive_text_loss(real[owner], texts, scale / ease, same),
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
    to_made = (normalize(real) @ normalize(generated).T).tolist()
    there = [owner[max(range(6), key=lambda j, i=i: to_made[i][j])] == i for i in range(4)]
    back = [owner[j] == max(range(4), key=lambda i, j=j: to_made[i][j]) for j in range(6)]
    expected["transfer"] = (sum(there) / 4 + sum(back) / 6) / 2
    made_text = (normalize(generated) @ normalize(texts).T).tolist()
    there = [same[i, max(range(6), key=lambda j, i=i: made_text[i][j])] for i in range(6)]
    expected["generated_text_r1"] = sum(map(int, there)) / 6
    there = [same[max(range(6), key=lambda i, j=j: made_text[i][j]), j] for j in range(6)]
    expected["text_generated_r1"] = sum(map(int, there)) / 6
    if select in expected:
        expected["score"] = expected[select]
    assert result == pytest.approx({**expected, "eligible": result["eligible"]}, abs=1e-5)


def test_guessing_is_no_better_than_a_confident_wrong_start(
    encoder: GmailEncoder, batch: Batch
) -> None:
    held = _held(batch)
    chance = sum(math.log(7 - int(sum(held.image_of == image))) for image in held.image_of) / 6
    guard = Guard(encoder, held, AlignConfig(temperature=0.001, select="loss"))
    wrong = guard.metrics()
    assert wrong["align_loss"] > 2 * chance
    assert wrong["score"] >= -chance - 1e-5
    with torch.no_grad():
        encoder.generated_head.zero_()
    collapsed = guard.metrics()
    assert collapsed["align_loss"] == pytest.approx(chance)
    assert collapsed["score"] <= wrong["score"]


def test_steps_that_harm_the_deployed_route_are_blocked(
    encoder: GmailEncoder, batch: Batch
) -> None:
    """Retrieval of the plain features is perfect, that of the moved encoder is not."""
    image_of = torch.tensor([0, 0, 1, 2, 3, 3])
    held = _held(batch, texts=batch.known["frozen"][image_of])
    free = Guard(encoder, held, AlignConfig(select="margin", keep_real=None)).metrics()
    assert free["retrieval"] < 0.9
    loss = 1 - free["retrieval"]
    for allowed, kept in ((0.0, 0.0), (loss - 0.01, 0.0), (loss + 0.01, 1.0), (None, 1.0)):
        config = AlignConfig(select="margin", keep_real=allowed)
        result = Guard(encoder, held, config).metrics()
        assert (result["score"], result["eligible"]) == (free["margin"], kept)
    with torch.no_grad():
        encoder.real_head.zero_()  # every image now finds nothing
    assert Guard(encoder, held, AlignConfig()).metrics()["eligible"] == 0.0


@torch.no_grad()
def test_the_gain_over_a_shift_by_plain_loops(encoder: GmailEncoder, batch: Batch) -> None:
    """The shift is that of the training pairs, and it moves the plain model's generated images."""
    held = _held(batch)
    held.tables.inputs["generated"].array[3] = batch.inputs["generated"][0]  # the same picture
    config = AlignConfig(select="paired_cosine", batch_size=4)
    train = held.pairs[[0, 2, 3]]
    guard = Guard(encoder, held, config, train)
    result = guard.gain_over_shift(guard.measure().score)
    pixels = encoder.preprocess.normalise(held.tables.inputs["generated"].array)
    plain = encoder.embed_pixels(pixels, Route.FROZEN)
    aligned = encoder.embed_pixels(pixels, Route.GENERATED)
    frozen = batch.known["frozen"][:4].float()
    shift = frozen[[0, 1, 2]].mean(dim=0) - plain[[0, 2, 3]].mean(dim=0)
    targets = frozen[held.image_of]
    cosines = [torch.cosine_similarity(rows, targets) for rows in (aligned, plain + shift)]
    assert result.value == pytest.approx(float(cosines[0].mean() - cosines[1].mean()), abs=1e-5)
    assert (result.n, encoder.applied) == (4, True)


def test_ties_are_misses(encoder: GmailEncoder, batch: Batch) -> None:
    flat = {"frozen": torch.ones(4, encoder.dim), "texts": torch.ones(6, encoder.dim)}
    result = Guard(encoder, _held(batch, **flat), AlignConfig()).metrics()
    assert result["generated_real_r1"] == 0.0
    assert result["real_text_r1"] == 0.0
    assert result["margin"] == pytest.approx(0.0, abs=1e-6)


def test_images_that_share_a_caption_find_it(encoder: GmailEncoder, batch: Batch) -> None:
    """A perfect encoder on four images of two classes, whose captions are the classes' names."""
    held = _held(batch)
    text = np.array([0, 0, 1, 0, 1, 1], dtype=np.int32)  # images 0 and 2, images 1 and 3
    held.pairs[:, COLUMNS.index("text")] = text
    classes = torch.eye(2, encoder.dim)
    image = classes[[0, 1, 0, 1]]
    with torch.no_grad():
        encoder.applied = False
    tables = Tables(
        held.tables.inputs, {"frozen": Table(image, "real"), "texts": Table(classes, "text")}
    )
    held = dataclasses.replace(held, tables=tables)
    config = AlignConfig(keep_real=0.0, encoder={"trunk": "frozen_real"}, weights={"text_real": 0})
    result = Guard(encoder, held, config).metrics()
    assert (result["real_text_r1"], result["text_real_r1"], result["retrieval"]) == (1.0, 1.0, 1.0)


def test_what_cannot_change_is_computed_once(
    encoder: GmailEncoder, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real images that stay frozen are not embedded, and plain losses not at every temperature."""
    seen: list[str] = []
    embed, distill = guard_module.embed, terms_module.distillation_losses
    monkeypatch.setattr(
        guard_module, "embed", lambda e, inputs, c: seen.extend(inputs) or embed(e, inputs, c)
    )
    monkeypatch.setattr(
        terms_module, "distillation_losses", lambda *rows: seen.append("distill") or distill(*rows)
    )
    weights = {"text_real": 0, "distill_generated": 1}
    config = AlignConfig(
        encoder={"trunk": "frozen_real"}, weights=weights, select="objective", keep_real=0.5
    )
    guard = Guard(encoder, _held(batch), config)
    guard.metrics()
    guard.metrics()
    assert set(seen) == {"generated", "distill"}
    assert seen.count("distill") == 2 * 3  # two terms that are reported, one that is selected by
