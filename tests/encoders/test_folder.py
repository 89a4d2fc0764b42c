"""Model folders that cannot be used are refused with one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import folder_fingerprint, tensors_fingerprint
from gmail_align.errors import ModelError


@pytest.fixture
def broken(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP, to be damaged."""
    return Path(shutil.copytree(clip_folder, tmp_path / "broken"))


def _refused(folder: Path | str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        GmailEncoder.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    _refused(tmp_path / "absent", "there is no model folder")
    _refused("./absent/model", "there is no model folder")


def test_no_model(tmp_path: Path) -> None:
    _refused(tmp_path, "holds no config.json")


def test_an_unfinished_artifact(broken: Path) -> None:
    (broken / "draft.json").write_text("{}")
    _refused(broken, "is unfinished")
    (broken / "manifest.json").write_text("{}")
    assert GmailEncoder.from_pretrained(broken).dim


@pytest.mark.parametrize(("text", "message"), [("{", "is damaged"), ("[]", "holds no object")])
def test_a_damaged_configuration(text: str, message: str, broken: Path) -> None:
    (broken / "config.json").write_text(text)
    _refused(broken, message)


def test_another_kind_of_model(broken: Path) -> None:
    (broken / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    _refused(broken, "of type 'gpt2', but a CLIP model is needed")


def test_damaged_weights(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    _refused(broken, "no usable CLIP weights")


def test_missing_weights(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    _refused(broken, "1 weights are missing, the first of them visual_projection.weight")


def test_weights_of_another_shape(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["visual_projection.weight"] = torch.zeros(3, 3)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    _refused(broken, "no usable CLIP weights")


def test_no_preprocessor(broken: Path) -> None:
    (broken / "preprocessor_config.json").unlink()
    _refused(broken, "preprocessor_config.json")


def test_no_safetensors_to_copy(broken: Path, tmp_path: Path) -> None:
    encoder = GmailEncoder.from_clip(broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no safetensors"):
        encoder.save(tmp_path / "out")


def test_fingerprints_see_every_change(clip_folder: Path, broken: Path) -> None:
    assert folder_fingerprint(broken) == folder_fingerprint(clip_folder)
    (broken / "tokenizer_config.json").write_text("{}")
    assert folder_fingerprint(broken) != folder_fingerprint(clip_folder)
    one = tensors_fingerprint({"a": torch.zeros(2, 3)})
    others = [{"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).double()}]
    others += [{"a": torch.tensor([[0.0, 0, 0], [0, 0, -0.0]])}]
    assert len({one, *map(tensors_fingerprint, others)}) == 5
