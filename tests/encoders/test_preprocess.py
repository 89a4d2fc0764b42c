from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from gmail_align.encoders import preprocess
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.errors import ModelError

SIZES = [(1, 7), (3, 80), (80, 3), (63, 64), (64, 64), (65, 64), (225, 333), (320, 240), (5, 5)]
SQUARE = {"height": 64, "width": 64}
PROCESSORS = {
    "clip 224": CLIPImageProcessorPil(),
    "clip 64": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE),
    "crop after 256": CLIPImageProcessorPil(size={"shortest_edge": 256}),
    "padded": CLIPImageProcessorPil(size={"shortest_edge": 21}),
    "siglip 224": SiglipImageProcessorPil(),
    "siglip 64 bilinear": SiglipImageProcessorPil(size=SQUARE, resample=2),
}


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(params=PROCESSORS)
def processor(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Preprocess]:
    theirs = PROCESSORS[request.param]
    theirs.save_pretrained(tmp_path)
    return theirs, Preprocess.from_folder(tmp_path)


def test_equal_to_transformers_bit_for_bit(processor: tuple[Any, Preprocess]) -> None:
    theirs, ours = processor
    images = [noise(*size) for size in SIZES]
    images += [noise(40, 30).convert(mode) for mode in ("L", "P", "RGBA", "LA", "CMYK", "1")]
    expected = theirs(images, return_tensors="pt")["pixel_values"]
    got = ours(images)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@settings(deadline=None, max_examples=25)
@given(width=st.integers(1, 150), height=st.integers(1, 150))
def test_equal_to_transformers_at_any_size(width: int, height: int) -> None:
    ours = Preprocess(size=64)
    expected = PROCESSORS["clip 64"](noise(width, height), return_tensors="pt")["pixel_values"]
    assert torch.equal(ours(noise(width, height)), expected)


def test_kept_pixels_normalise_to_the_same_values() -> None:
    ours = Preprocess(size=32)
    images = [noise(40, 50), noise(33, 32)]
    pixels = ours.pixels(images)
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert torch.equal(ours.normalise(pixels), ours(images))
    assert ours([]).shape == (0, 3, 32, 32)
    assert ours(images[0]).shape == (1, 3, 32, 32)


def test_the_fingerprint_follows_the_parameters() -> None:
    assert Preprocess(size=64).fingerprint == Preprocess(size=64).fingerprint
    assert Preprocess(size=64).fingerprint != Preprocess(size=65).fingerprint
    used = Preprocess(size=8)
    used(noise(9, 9))
    assert pickle.loads(pickle.dumps(used)) == used == Preprocess(size=8)


def test_old_and_combined_configurations_are_read(tmp_path: Path) -> None:
    clip = Preprocess()
    old = {
        "size": 224,
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "image_mean": clip.mean,
        "image_std": clip.std,
        "resample": 3,
    }
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": old}))
    assert Preprocess.from_folder(tmp_path) == clip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**old, "size": 336}))
    assert Preprocess.from_folder(tmp_path) == Preprocess(resize_to=336)


def test_keys_that_are_left_out_are_those_of_the_named_processor(tmp_path: Path) -> None:
    path, plain = tmp_path / "preprocessor_config.json", {"image_mean": [0.5] * 3}
    plain["image_std"] = plain["image_mean"]
    path.write_text(json.dumps({**plain, "feature_extractor_type": "ViTFeatureExtractor"}))
    half = (0.5, 0.5, 0.5)
    vit = Preprocess(224, "square", False, half, half, "bilinear")
    assert Preprocess.from_folder(tmp_path) == vit
    path.write_text(json.dumps(plain))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert Preprocess.from_folder(tmp_path) == vit
    clip = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 256}}
    path.write_text(json.dumps(plain | clip))
    assert Preprocess.from_folder(tmp_path) == Preprocess(mean=half, std=half, resize_to=256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "preprocessor_config.json"),
        ("{", "preprocessor_config.json"),
        ("[]", "preprocessor_config.json"),
        ({"do_normalize": False}, "normalising"),
        ({"do_pad": True}, "pads"),
        ({"rescale_factor": 0.5}, "0.5"),
        ({"rescale_factor": "x"}, "preprocessor_config.json"),
        ({"resample": 9}, "9"),
        ({"resample": [3]}, "preprocessor_config.json"),
        ({"do_center_crop": False}, "fixed size"),
        ({"crop_size": {"height": 3, "width": 4}}, "crop_size"),
        ({"size": {"height": 10, "width": 10}}, "square"),
        ({"size": {"longest_edge": 10}}, "size"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": ["x", 0, 0]}, "preprocessor_config.json"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean"),
        ({"image_std": [0.0, 0.5, 0.5]}, "image_std"),
        ({"do_center_crop": ..., "crop_size": ..., "size": SQUARE}, "square"),
        (
            {"image_processor_type": "DeiTImageProcessor", "size": SQUARE, "crop_size": ...},
            "square",
        ),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNext"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"rescale_offset": True}, "rescale_offset"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"image_processor_type": ..., "resample": ...}, "resample"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, changes: dict[str, Any] | str | None, message: str
) -> None:
    PROCESSORS["clip 64"].save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    if changes is None:
        path.unlink()
    elif isinstance(changes, str):
        path.write_text(changes)
    else:
        changed = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in changed.items() if v is not ...}))
    with pytest.raises(ModelError, match=message):
        Preprocess.from_folder(tmp_path)


def test_padding_a_long_image_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image, steps = noise(800, 20).resize((3000, 75)), Preprocess(32, resize="square", pad=True)
    exact = steps.pixels([image]).int()
    monkeypatch.setattr(preprocess, "_WIDEST", 1500)
    bounded = steps.pixels([image]).int()
    assert not exact.equal(bounded) and (exact - bounded).abs().max() <= 4
