"""The encoder: equal to CLIP where it has to be, bit for bit, and the same after a round trip."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route, parse_route
from gmail_align.errors import ConfigError, DataError, ModelError
from worlds.encoders import disturb

ALL = list(Route)


@pytest.fixture(scope="module")
def plain(clip_folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(clip_folder).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    sizes = [(40, 50), (64, 33), (32, 32)]
    return [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


def embed(encoder: GmailEncoder, pixels: torch.Tensor, route: Route) -> torch.Tensor:
    with torch.no_grad():
        return encoder.embed_pixels(pixels, route)


@pytest.mark.parametrize("route", ALL)
def test_before_training_every_route_is_clip(
    route: Route, clip_folder: Path, plain: CLIPModel, pixels: torch.Tensor
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    with torch.no_grad():
        assert torch.equal(
            embed(encoder, pixels, route), plain.get_image_features(pixels).pooler_output
        )


def test_frozen_is_clip_at_any_time(
    clip_folder: Path, plain: CLIPModel, pixels: torch.Tensor
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    disturb(encoder)
    changed = {route: embed(encoder, pixels, route) for route in ALL}
    with torch.no_grad():
        features = plain.get_image_features(pixels).pooler_output
        vision = plain.vision_model(pixels).pooler_output
    assert torch.equal(changed[Route.FROZEN], features)
    for route in (Route.GENERATED, Route.REAL, Route.REAL_HEAD):
        assert not torch.allclose(changed[route], features, atol=1e-3)
        assert torch.equal(embed(encoder, pixels, route), changed[route])
    with torch.no_grad():
        assert torch.equal(encoder.trunk(pixels, Route.REAL_HEAD), vision)
        assert torch.equal(
            encoder.trunk(pixels, Route.REAL), encoder.trunk(pixels, Route.GENERATED)
        )


def test_adapted_trunk_equals_merged_weights(clip_folder: Path, pixels: torch.Tensor) -> None:
    """W + (alpha / r) B A, put into a plain CLIP by hand, gives the same trunk."""
    encoder = GmailEncoder.from_clip(clip_folder, LoraSettings(rank=3, alpha=6.0))
    disturb(encoder)
    merged = CLIPModel.from_pretrained(clip_folder).eval()
    parameters = encoder.trainable()
    for number, layer in enumerate(merged.vision_model.encoder.layers):
        for name in ("q_proj", "v_proj"):
            place = f"clip.vision_model.encoder.layers.{number}.self_attn.{name}.lora_"
            update = parameters[f"{place}B.default.weight"] @ parameters[f"{place}A.default.weight"]
            getattr(layer.self_attn, name).weight.data += 2.0 * update.detach()
    with torch.no_grad():
        expected = merged.vision_model(pixels).pooler_output
        assert torch.allclose(encoder.trunk(pixels, Route.REAL), expected, atol=1e-5)
        by_head = encoder.trunk(pixels, Route.REAL) @ encoder.real_head.T
    assert torch.allclose(embed(encoder, pixels, Route.REAL), by_head, atol=1e-5)


def test_images_and_texts_equal_transformers(
    clip_folder: Path, plain: CLIPModel, photos: list[Image.Image], tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    texts = ["a red image", "a blue image of tone 3", "a"]
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    tokens = AutoTokenizer.from_pretrained(clip_folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        given = processor(photos, return_tensors="pt")["pixel_values"]
        images = normalize(plain.get_image_features(given).pooler_output, dim=-1)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        words = normalize(plain.get_text_features(ids, mask).pooler_output, dim=-1)
    assert torch.allclose(encoder.encode_images(photos), images, atol=1e-5)
    assert torch.allclose(encoder.encode_images(photos, batch_size=2), images, atol=1e-5)
    assert torch.allclose(encoder.encode_texts(texts), words, atol=1e-5)
    assert torch.allclose(encoder.encode_texts(texts, batch_size=1), words, atol=1e-5)
    files = [tmp_path / f"{number}.png" for number in range(len(photos))]
    for photo, file in zip(photos, files, strict=True):
        photo.save(file)
    assert torch.equal(encoder.encode_images(files), encoder.encode_images(photos))
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, 24)
    assert float(encoder.logit_scale) == pytest.approx(float(plain.logit_scale.detach().exp()))


def test_long_texts_are_cut_and_keep_their_end(clip_folder: Path) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    long = "red " * 40
    assert torch.allclose(encoder.encode_texts([long]), encoder.encode_texts(["red " * 10]))


def test_trainable_is_adapter_and_heads(clip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    names = set(encoder.trainable())
    expected = {
        f"clip.vision_model.encoder.layers.{layer}.self_attn.{name}.lora_{side}.default.weight"
        for layer in range(2)
        for name in ("q_proj", "v_proj")
        for side in "AB"
    }
    assert names == expected | {"real_head", "generated_head"}
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == names
    assert set(encoder.trainable(real_head=False)) == names - {"real_head"}
    shared = GmailEncoder.from_clip(clip_folder, dual_heads=False)
    assert set(shared.trainable()) == expected | {"real_head"}
    assert set(shared.trainable(real_head=False)) == expected | {"real_head"}
    assert shared.generated_head is shared.real_head


def test_gradients_reach_the_adapter_after_a_frozen_pass(
    clip_folder: Path, pixels: torch.Tensor
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    disturb(encoder)
    embed(encoder, pixels, Route.FROZEN)
    encoder.embed_pixels(pixels, Route.GENERATED).square().sum().backward()
    with_gradient = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert with_gradient == set(encoder.trainable()) - {"real_head"}
    assert all(bool(encoder.trainable()[n].grad.abs().sum() > 0) for n in with_gradient)


@pytest.mark.parametrize("targets", [LoraSettings().targets, r"vision_model\..*\.(\w_proj|fc\d)"])
def test_the_lean_trunk_and_its_gradients_are_the_trunks(
    targets: str, clip_folder: Path, pixels: torch.Tensor
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder, LoraSettings(targets=targets))
    disturb(encoder)
    result = {}
    for name, trunk in (("full", encoder.trunk), ("lean", encoder.lean_trunk)):
        encoder.zero_grad()
        output = encoder.project(trunk(pixels, Route.GENERATED), Route.GENERATED)
        output.square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
        result[name] = {"output": output.detach(), **gradients}
    assert set(result["lean"]) == set(encoder.trainable()) - {"real_head"} | {"output"}
    for name, value in result["full"].items():
        assert torch.allclose(result["lean"][name], value, rtol=1e-4, atol=1e-4), name
    with torch.no_grad():
        lean, full = (t(pixels, Route.FROZEN) for t in (encoder.lean_trunk, encoder.trunk))
    assert torch.allclose(lean, full, atol=1e-5)


def test_seed_decides_the_adapter_and_leaves_the_global_state_alone(clip_folder: Path) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, third = (GmailEncoder.from_clip(clip_folder, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint == second.fingerprint != third.fingerprint


@pytest.mark.parametrize("dual_heads", [True, False])
def test_round_trip(
    dual_heads: bool, clip_folder: Path, pixels: torch.Tensor, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder, LoraSettings(rank=2), dual_heads=dual_heads)
    disturb(encoder)
    encoder.best_step = 7
    encoder.save(tmp_path / "encoder")
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "encoder", moved)
    again = GmailEncoder.from_pretrained(moved)
    for route in ALL:
        assert torch.equal(embed(again, pixels, route), embed(encoder, pixels, route))
        assert again.route_fingerprint(route) == encoder.route_fingerprint(route)
    assert again.fingerprint == encoder.fingerprint != encoder.base_fingerprint
    assert (again.best_step, again.applied) == (7, True)
    assert torch.equal(again.encode_texts(["a red image"]), encoder.encode_texts(["a red image"]))


def test_the_same_encoder_is_saved_as_the_same_bytes(clip_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        GmailEncoder.from_clip(clip_folder).save(tmp_path / name)
    files = [
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert files[0] == files[1]
    assert {"config.json", "heads.safetensors", "base/model.safetensors"} <= set(files[0])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_plain_peft_loads_the_adapter(
    clip_folder: Path, pixels: torch.Tensor, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    disturb(encoder)
    encoder.save(tmp_path)
    base = CLIPModel.from_pretrained(tmp_path / "base").eval()
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        result = model.base_model.model.vision_model(pixels).pooler_output
        assert torch.equal(result, encoder.trunk(pixels, Route.REAL))


def test_an_encoder_that_is_not_applied_is_clip_by_every_route(
    clip_folder: Path, plain: CLIPModel, pixels: torch.Tensor, tmp_path: Path
) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    disturb(encoder)
    encoder.applied = False
    encoder.save(tmp_path)
    again = GmailEncoder.from_pretrained(tmp_path)
    with torch.no_grad():
        features = plain.get_image_features(pixels).pooler_output
    for route in ALL:
        assert torch.equal(embed(again, pixels, route), features)
        assert again.route_fingerprint(route) == again.base_fingerprint == again.fingerprint


def test_a_plain_clip_folder_is_frozen_by_every_route(
    clip_folder: Path, plain: CLIPModel, pixels: torch.Tensor
) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    with torch.no_grad():
        features = plain.get_image_features(pixels).pooler_output
    assert all(torch.equal(embed(encoder, pixels, route), features) for route in ALL)
    assert encoder.fingerprint == GmailEncoder.from_clip(clip_folder).base_fingerprint
    with pytest.raises(ModelError, match="from_clip"):
        encoder.trainable()


def test_every_route_has_its_own_fingerprint(clip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder)
    disturb(encoder)
    assert len({encoder.route_fingerprint(route) for route in ALL}) == 4
    assert encoder.route_fingerprint(Route.FROZEN) == encoder.base_fingerprint


def test_an_unknown_route_is_refused(clip_folder: Path, photos: list[Image.Image]) -> None:
    assert parse_route("real_head") is Route.REAL_HEAD
    encoder = GmailEncoder.from_pretrained(clip_folder)
    with pytest.raises(ConfigError, match="genrated"):
        encoder.encode_images(photos, route="genrated")


def test_a_file_that_is_no_image_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    encoder = GmailEncoder.from_pretrained(clip_folder)
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("text.jpg", "absent.jpg"):
        with pytest.raises(DataError, match=name):
            encoder.encode_images([tmp_path / name])


def test_parts_that_do_not_belong_together_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    GmailEncoder.from_clip(clip_folder).save(folder)
    card = json.loads((folder / "config.json").read_text())
    for change, message in [
        ({"base_fingerprint": "0" * 16}, str(folder)),
        ({"lora": {"rank": 3, "alpha": 8.0}}, "lora_A"),
        ({"lora": {"rank": 4, "targets": r"vision_model\..*\.q_proj"}}, "adapter_model"),
        ({"aplied": True}, "aplied"),
        ({"base": "nowhere/at/all"}, "nowhere/at/all"),
    ]:
        (folder / "config.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(ModelError, match=message):
            GmailEncoder.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(card))
    (folder / "heads.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"heads\.safetensors"):
        GmailEncoder.from_pretrained(folder)


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "heads.safetensors"])
def test_parts_that_are_not_finite_are_refused(
    name: str, clip_folder: Path, tmp_path: Path
) -> None:
    GmailEncoder.from_clip(clip_folder).save(tmp_path)
    tensors = {key: value / 0 for key, value in load_file(tmp_path / name).items()}
    save_file(tensors, tmp_path / name)
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path / name} holds NaN")):
        GmailEncoder.from_pretrained(tmp_path)


def test_a_rank_above_the_layers_own_is_refused(clip_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"lora\.rank 1000000000"):
        GmailEncoder.from_clip(clip_folder, LoraSettings(rank=10**9))


def test_targets_that_never_end_are_refused(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmail_align.encoders.lora._PATIENCE", 0.5)
    with pytest.raises(ModelError, match="targets"):
        GmailEncoder.from_clip(clip_folder, LoraSettings(targets=r"(\w+\.?)+Z"))


def test_targets_that_do_not_compile_are_refused() -> None:
    with pytest.raises(ValueError, match="regular expression"):
        LoraSettings(targets=r"vision_model\.(")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (r".*\.(q_proj|v_proj)", "text_model"),
        (r"vision_model\..*\.query", "query"),
        (r"vision_model\..*layer_norm1", "layer_norm1"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: str, message: str, clip_folder: Path) -> None:
    with pytest.raises(ModelError, match=message):
        GmailEncoder.from_clip(clip_folder, LoraSettings(targets=targets))
