"""Model folders that cannot be used are refused with one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import folder_fingerprint, tensors_fingerprint
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def broken(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP, to be damaged."""
    return Path(shutil.copytree(clip_folder, tmp_path / "broken"))


def _refused(folder: Path | str, named: str) -> None:
    with pytest.raises(ModelError, match=re.escape(named)) as caught:
        GmailEncoder.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    _refused(tmp_path / "absent", str(tmp_path / "absent"))
    _refused("./absent/model", "absent/model")


def test_no_model(tmp_path: Path) -> None:
    _refused(tmp_path, "config.json")


def test_an_unfinished_artifact(broken: Path) -> None:
    (broken / "draft.json").write_text("{}")
    _refused(broken, "unfinished")
    (broken / "manifest.json").write_text("{}")
    assert GmailEncoder.from_pretrained(broken).dim


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_configuration(text: str, broken: Path) -> None:
    (broken / "config.json").write_text(text)
    _refused(broken, str(broken / "config.json"))


@pytest.mark.parametrize("value", ["x", [3], {"a": 1}, None, -1, 10**12])
@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "patch_size"])
def test_a_configuration_with_values_of_another_type(key: str, value: Any, broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["vision_config"][key] = value
    (broken / "config.json").write_text(json.dumps(config))
    _refused(broken, str(broken))


def test_layers_without_end_are_refused_before_they_are_built(broken: Path) -> None:
    """Building them would take memory until the machine has none."""
    config = json.loads((broken / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 10**30
    (broken / "config.json").write_text(json.dumps(config))
    _refused(broken, "num_hidden_layers")


def test_how_a_configuration_wraps_outputs_makes_no_difference(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["return_dict"] = config["vision_config"]["return_dict"] = False
    (broken / "config.json").write_text(json.dumps(config))
    assert (
        GmailEncoder.from_pretrained(broken).backbone.patches(torch.zeros(1, 3, 32, 32)).ndim == 3
    )


def test_layers_that_the_configuration_does_not_describe_are_refused(broken: Path) -> None:
    path = broken / "model.safetensors"
    name = "vision_model.encoder.layers.0.ls1.gamma"
    save_file({**load_file(path), name: torch.ones(2)}, path)
    _refused(broken, name)


def test_several_ends_of_texts_are_refused(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["text_config"]["eos_token_id"] = [3, 4]
    (broken / "config.json").write_text(json.dumps(config))
    _refused(broken, str(broken))


def test_another_kind_of_model(broken: Path) -> None:
    (broken / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    _refused(broken, "gpt2")


def test_damaged_weights(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    _refused(broken, str(broken))


def test_missing_weights(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    _refused(broken, "visual_projection.weight")


def test_weights_of_another_shape(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["visual_projection.weight"] = torch.zeros(3, 3)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    _refused(broken, str(broken))


def test_no_preprocessor(broken: Path) -> None:
    (broken / "preprocessor_config.json").unlink()
    _refused(broken, "preprocessor_config.json")


def test_a_preprocessor_of_another_size(broken: Path) -> None:
    path = broken / "preprocessor_config.json"
    sizes = {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **sizes}))
    _refused(broken, "16 pixels")


@pytest.mark.parametrize("kind", [["clip"], {"a": 1}, 3, None])
def test_a_model_type_that_is_not_a_name(kind: Any, broken: Path) -> None:
    (broken / "config.json").write_text(json.dumps({"model_type": kind}))
    _refused(broken, "model of type")


def test_an_adapter_next_to_the_model_is_named(broken: Path) -> None:
    (broken / "adapter_config.json").write_text("{}")
    _refused(broken, "adapter_config.json")


def test_a_base_of_pytorch_weights_is_saved(broken: Path, tmp_path: Path) -> None:
    """Its weights become safetensors in the encoder's folder, and the encoder loads again."""
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    encoder = GmailEncoder.from_clip(broken)
    encoder.save(tmp_path / "out")
    assert (tmp_path / "out/base/model.safetensors").exists()
    again = GmailEncoder.from_pretrained(tmp_path / "out")
    assert again.base_fingerprint == encoder.base_fingerprint
    texts = ["a red image"]
    assert torch.allclose(again.encode_texts(texts), encoder.encode_texts(texts), atol=1e-6)


def _cached(clip_folder: Path, cache: Path, name: str = "me/clip") -> Path:
    """Put a model into a cache of the hub, as a download leaves it; return its snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    return Path(shutil.copytree(clip_folder, repository / "snapshots" / COMMIT))


def test_a_large_base_from_the_hub_keeps_its_id_and_revision(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache may be elsewhere on another machine: the encoder finds its base by the id."""
    monkeypatch.setattr("gmail_align.encoders.folder.COPY_BELOW_BYTES", 0)
    first, second = tmp_path / "one", tmp_path / "two"
    _cached(clip_folder, first)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(first))
    encoder = GmailEncoder.from_clip("me/clip")
    encoder.save(tmp_path / "encoder")
    card = json.loads((tmp_path / "encoder/config.json").read_text())
    assert card["base"] == f"me/clip@{COMMIT}"
    shutil.move(first, second)
    shutil.move(tmp_path / "encoder", tmp_path / "moved")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(second))
    again = GmailEncoder.from_pretrained(tmp_path / "moved")
    assert again.fingerprint == encoder.fingerprint


def test_a_large_local_base_goes_along(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmail_align.encoders.folder.COPY_BELOW_BYTES", 0)
    base = Path(shutil.copytree(clip_folder, tmp_path / "base"))
    GmailEncoder.from_clip(base).save(tmp_path / "encoder")
    shutil.rmtree(base)
    shutil.move(tmp_path / "encoder", tmp_path / "moved")
    GmailEncoder.from_pretrained(tmp_path / "moved")


def test_which_names_the_hub_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that may be a mistyped folder is refused; otherwise the log names the revision."""
    asked: list[tuple[str, str | None]] = []

    def download(name: str, **settings: Any) -> str:
        if settings.get("local_files_only"):
            raise FileNotFoundError(name)
        asked.append((name, settings["revision"]))
        raise ConnectionError("no network")

    monkeypatch.setattr("gmail_align.encoders.folder.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "openai").mkdir()
    for name in ("runs/clip", "openai/clip", "exports/clip", "a/b/c", "clip"):
        _refused(name, name.partition("@")[0])
    for name in ("./google/siglip", "google/siglip/", "hf-hub:google/siglip", "a" * 5000):
        for given in (name, model_path(name, "clip")):  # as commands and recipes hand it on
            _refused(given, "there is no model folder at")
    assert asked == []
    _refused("google/siglip", "google/siglip")
    assert "google/siglip, revision main" in capsys.readouterr().err
    _refused("stranger/clip@v2", "stranger/clip")
    assert "stranger/clip, revision v2" in capsys.readouterr().err
    _refused("runs/clip@v2", "runs/clip")
    assert asked == [("google/siglip", None), ("stranger/clip", "v2"), ("runs/clip", "v2")]


def test_fingerprints_see_every_change(clip_folder: Path, broken: Path) -> None:
    assert folder_fingerprint(broken) == folder_fingerprint(clip_folder)
    (broken / "tokenizer_config.json").write_text("{}")
    assert folder_fingerprint(broken) != folder_fingerprint(clip_folder)
    one = tensors_fingerprint({"a": torch.zeros(2, 3)})
    others = [{"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).double()}]
    others += [{"a": torch.tensor([[0.0, 0, 0], [0, 0, -0.0]])}]
    assert len({one, *map(tensors_fingerprint, others)}) == 5


def test_what_is_there_is_not_said_to_be_absent(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    shutil.copytree(broken, tmp_path / "owner/clip")
    _refused("owner/clip@main", "owner/clip is a folder")
    _refused("broken/model.safetensors", "broken/model.safetensors is a file")
    (broken / "config.json").unlink()
    _refused("broken/model.safetensors", "gmail-align convert broken/model.safetensors")
