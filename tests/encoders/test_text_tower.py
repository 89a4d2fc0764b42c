"""An adapter of the text tower: where it is, what it changes, and that nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from gmail_align.encoders.config import EncoderLayout, LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError
from worlds.encoders import disturb

TEXTS = ["a red image", "a blue image of tone 3", "a"]
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _moved(folder: Path, **settings: object) -> GmailEncoder:
    return disturb(GmailEncoder.from_clip(folder, LoraSettings.model_validate(settings)), 0.1)


@pytest.mark.parametrize("fixture", ["clip_folder", "siglip_folder"])
@torch.no_grad()
def test_texts_move_on_adapted_routes_alone(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    plain = GmailEncoder.from_pretrained(folder)
    expected = plain.embed_texts(TEXTS, Route.REAL)
    assert torch.equal(
        GmailEncoder.from_clip(folder, LoraSettings(towers="both")).embed_texts(TEXTS, Route.REAL),
        expected,
    )
    encoder = _moved(folder, towers="both")
    for route in (Route.REAL, Route.GENERATED, Route.FROZEN, Route.REAL_HEAD, Route.REAL):
        same = torch.equal(encoder.embed_texts(TEXTS, route), expected)
        assert same == (not route.adapted), route
        assert (encoder.text_fingerprint(route) == plain.base_fingerprint) == same
    encoder.save(tmp_path / "encoder")
    again = GmailEncoder.from_pretrained(tmp_path / "encoder")
    assert torch.equal(again.embed_texts(TEXTS, Route.REAL), encoder.embed_texts(TEXTS, Route.REAL))
    assert torch.equal(again.encode_texts(TEXTS), encoder.encode_texts(TEXTS))
    assert torch.equal(encoder.encode_texts(TEXTS, "frozen"), plain.encode_texts(TEXTS))
    assert torch.equal(
        again.embed_pixels(PIXELS, Route.REAL), encoder.embed_pixels(PIXELS, Route.REAL)
    )
    assert again.fingerprint == encoder.fingerprint
    encoder.applied = False
    assert torch.equal(encoder.embed_texts(TEXTS, Route.REAL), expected)


@torch.no_grad()
def test_the_update_is_b_a_beside_the_frozen_weight(clip_folder: Path) -> None:
    """Adding alpha / rank B A to a plain CLIP's text weights by hand gives the same features."""
    encoder = _moved(clip_folder, towers="text", rank=3, alpha=6.0)
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    result = encoder._texts.tensors()
    assert len(result) == 8  # two layers, q and v, A and B
    for name in [name for name in result if ".lora_A." in name]:
        place = name.partition(".lora_A.")[0]
        update = result[name.replace(".lora_A.", ".lora_B.")] @ result[name]
        clip.get_submodule(place).weight.add_(2.0 * update)
    ids, mask = encoder.tokenize(TEXTS)
    expected = clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    assert torch.allclose(encoder.embed_texts(TEXTS, Route.REAL), expected, atol=1e-5)


@pytest.mark.parametrize(("towers", "count"), [("vision", 8), ("text", 8), ("both", 16)])
def test_what_is_trained(towers: str, count: int, clip_folder: Path) -> None:
    encoder = GmailEncoder.from_clip(clip_folder, LoraSettings.model_validate({"towers": towers}))
    adapters = [name for name in encoder.trainable() if ".lora_" in name]
    assert len(adapters) == count
    assert any(name.startswith("clip.vision_model.") for name in adapters) == (towers != "text")
    assert any(name.startswith("clip.text_model.") for name in adapters) == (towers != "vision")
    assert encoder.adapts_texts == (towers != "vision")
    for route in (Route.FROZEN, Route.REAL):  # a frozen pass leaves what is trained trainable
        encoder.embed_texts(TEXTS, route)
        encoder.embed_pixels(PIXELS, route)
    features = encoder.embed_texts(TEXTS, Route.REAL).sum() + encoder.embed_pixels(PIXELS).sum()
    features.backward()
    touched = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert touched == set(encoder.trainable()) - {"generated_head"}


def test_the_vision_adapter_is_as_without_it(clip_folder: Path, tmp_path: Path) -> None:
    """Its first weights, and its folder, do not depend on the text tower's."""
    alone, both = (
        GmailEncoder.from_clip(clip_folder, LoraSettings.model_validate({"towers": towers}), seed=5)
        for towers in ("vision", "both")
    )
    for name, parameter in alone.trainable().items():
        assert torch.equal(parameter, both.trainable()[name]), name
    alone.save(tmp_path / "alone")
    card = json.loads((tmp_path / "alone" / "config.json").read_text())
    assert "towers" not in card["lora"]  # encoders made before the switch are the same
    assert not (tmp_path / "alone" / "adapter_text").exists()
    assert LoraSettings(towers="both").model_dump()["towers"] == "both"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"towers": "text", "targets": r"text_model\..*\.nothing"}, "no module of a text tower"),
        ({"towers": "vision", "targets": r".*\.q_proj"}, "outside the vision tower"),
        ({"towers": "both", "targets": r".*(q_proj|visual_projection)"}, "outside the towers"),
        ({"towers": "both", "targets": r"text_model\..*\.q_proj"}, "no module of the model"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    settings: dict[str, str], said: str, clip_folder: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        GmailEncoder.from_clip(clip_folder, LoraSettings.model_validate(settings))


def test_one_expression_for_both_towers(clip_folder: Path) -> None:
    settings = LoraSettings(towers="both", targets=r".*\.(k_proj|fc1)")
    trained = GmailEncoder.from_clip(clip_folder, settings).trainable()
    places = {name.partition(".lora_")[0] for name in trained if ".lora_" in name}
    assert len(places) == 8
    assert {place.rsplit(".", 1)[1] for place in places} == {"k_proj", "fc1"}


@pytest.mark.parametrize("trunk", ["shared", "separate", "frozen_real"])
@torch.no_grad()
def test_images_do_not_see_the_texts_adapter(trunk: str, clip_folder: Path) -> None:
    """Routes are those of an encoder with adapters of images alone, in every layout."""
    layout = EncoderLayout.model_validate({"trunk": trunk})
    alone, both = (
        GmailEncoder.from_clip(
            clip_folder, LoraSettings.model_validate({"towers": towers}), layout=layout
        )
        for towers in ("vision", "both")
    )
    assert sum(name.startswith("clip.text_model.") for name in both.trainable()) == 8
    generator = torch.Generator().manual_seed(4)
    for name, parameter in alone.trainable().items():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        both.trainable()[name].copy_(parameter)
    for route in (Route.GENERATED, Route.REAL, Route.FROZEN, Route.GENERATED):
        assert torch.equal(both.embed_pixels(PIXELS, route), alone.embed_pixels(PIXELS, route))
    assert set(both.trainable()) == {
        name for name, parameter in both.named_parameters() if parameter.requires_grad
    }
