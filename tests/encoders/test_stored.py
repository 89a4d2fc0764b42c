"""Weights of a model's folder that no library may be trusted with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import load_language_model
from gmail_align.encoders.shipped import shipped_models
from gmail_align.encoders.stored import require_own_files
from gmail_align.errors import ModelError

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def load_clip(folder: Path) -> object:
    return GmailEncoder.from_pretrained(folder)


LOADERS = {"clip": load_clip, "gpt2": load_language_model}


@pytest.fixture(params=LOADERS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[Path], object]]:
    shutil.copytree(shipped_models() / request.param, tmp_path / "model")
    return tmp_path / "model", LOADERS[request.param]


def cut(folder: Path, names: tuple[str, str] = PARTS) -> None:
    """Cut the weights into two files that an index names."""
    tensors = load_file(folder / "model.safetensors")
    order = sorted(tensors)
    halves = (order[::2], order[1::2])
    table = {}
    for name, keys in zip(names, halves, strict=True):
        save_file({key: tensors[key] for key in keys}, folder / name, {"format": "pt"})
        table |= dict.fromkeys(keys, name)
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_weights_in_several_files_are_loaded(
    model: tuple[Path, Callable[[Path], object]],
) -> None:
    folder, load = model
    cut(folder)
    load(folder)


def test_a_part_that_is_missing_is_named(model: tuple[Path, Callable[[Path], object]]) -> None:
    folder, load = model
    cut(folder)
    (folder / PARTS[1]).unlink()
    with pytest.raises(ModelError, match=PARTS[1]):
        load(folder)


def test_an_index_reads_no_file_outside(model: tuple[Path, Callable[[Path], object]]) -> None:
    folder, load = model
    cut(folder, (PARTS[0], "../outside.safetensors"))
    with pytest.raises(ModelError, match=r"outside\.safetensors.* leaves the folder"):
        load(folder)
    with pytest.raises(ModelError, match="leaves the folder"):
        require_own_files(folder)  # as for each part of a pipeline


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(model: tuple[Path, Callable[[Path], object]], text: str) -> None:
    folder, load = model
    cut(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        load(folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_not_taken_as_they_stand(
    model: tuple[Path, Callable[[Path], object]], kind: torch.dtype
) -> None:
    folder, load = model
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in sorted(tensors) if key.endswith("weight") and tensors[key].ndim > 1)
    tensors[name] = tensors[name].float().to(kind)
    tensors[f"{name}_scale"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} as"):
        load(folder)


def test_weights_that_are_stored_as_small_floats_are_weights() -> None:
    load_language_model(shipped_models() / "llama")


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_not_finite_are_named(
    model: tuple[Path, Callable[[Path], object]],
) -> None:
    folder, load = model
    name = min(load_file(folder / "model.safetensors"))
    changed(folder, lambda tensors: tensors[name].view(-1)[:1].fill_(torch.inf))
    with pytest.raises(ModelError, match=re.escape(name)):
        load(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clip", "visual_projection.bias"),
        ("clip", "vision_model.embeddings.registers"),
        ("gpt2", "transformer.wte.bias"),
        ("gpt2", "transformer.h.9.ln_1.weight"),
    ],
)
def test_weights_that_a_part_of_the_model_would_leave_out_are_named(
    kind: str, name: str, tmp_path: Path
) -> None:
    """A projection with a bias is another model than the one that transformers builds."""
    folder = Path(shutil.copytree(shipped_models() / kind, tmp_path / "model"))
    changed(folder, lambda tensors: tensors.update({name: torch.ones(2)}))
    with pytest.raises(ModelError, match=re.escape(name)):
        LOADERS[kind](folder)


def test_weights_that_change_no_feature_may_lie_beside_the_others(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_models() / "clip", tmp_path / "model"))
    beside = {
        "text_model.embeddings.position_ids": torch.arange(9)[None],
        "logit_bias": torch.ones(1),
        "classifier.weight": torch.ones(3, 3),
    }
    changed(folder, lambda tensors: tensors.update(beside))
    load_clip(folder)


def test_a_weight_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_models() / "clip", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 10**10
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"token_embedding\.weight of shape .*10000000000"):
        load_clip(folder)


def test_more_layers_than_the_weights_hold_are_not_built(
    model: tuple[Path, Callable[[Path], object]],
) -> None:
    folder, load = model
    config = json.loads((folder / "config.json").read_text())
    part, key = (config, "n_layer") if "n_layer" in config else (None, "num_hidden_layers")
    (part or config["vision_config"])[key] = 9_000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"{key} = 9000"):
        load(folder)


def test_a_link_to_a_file_that_is_gone_is_named(
    model: tuple[Path, Callable[[Path], object]],
) -> None:
    """The hub's cache links to files, which a clean-up may have taken."""
    folder, load = model
    (folder / "model.safetensors").rename(folder.parent / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    load(folder)
    (folder.parent / "blob").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors links to a file that is missing"):
        load(folder)


def test_an_adapter_beside_a_model_is_named(model: tuple[Path, Callable[[Path], object]]) -> None:
    folder, load = model
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load(folder)
