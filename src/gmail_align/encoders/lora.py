"""The LoRA adapter: injection by regular expression, its tensors, and PEFT's folder format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gmail_align.artifacts import write_bytes, write_json
from gmail_align.encoders.config import LoraSettings
from gmail_align.errors import ModelError
from gmail_align.runtime import stable_seed

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."


def inject(
    model: nn.Module, settings: LoraSettings, seed: int, adapter: str = "default"
) -> list[LoraLayer]:
    """Put LoRA layers into ``model`` in place and return them; their output is zero (B = 0).

    Args:
        model: A CLIP model; only modules inside its vision tower may match.
        settings: Rank, scale and targets.
        seed: Seed of the A matrices; the global random state is left alone.
        adapter: Name of the adapter; a model may have several.

    Raises:
        ModelError: the targets match nothing, or what is no linear layer of the vision tower.
    """
    matched = _matching(model, settings.targets)
    outside = [name for name in matched if not name.startswith("vision_model.")]
    if not matched or outside:
        what = f"{outside[0]!r} outside the vision tower" if outside else "no module of the model"
        raise ModelError(
            f"lora.targets {settings.targets!r} matches {what}: correct the expression"
        )
    for name in matched:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise ModelError(
                f"lora.targets {settings.targets!r} matches {name!r}, whose weight is used past "
                "any adapter, which would never learn: leave it out of the expression"
            )
    with torch.random.fork_rng(devices=[]):
        other = () if adapter == "default" else (adapter,)
        torch.manual_seed(stable_seed(seed, "lora", *other))
        if hasattr(model, "peft_config"):  # peft's note of the first adapter makes it warn of two
            del model.peft_config
        try:
            inject_adapter_in_model(_peft_config(settings), model, adapter)
        except ValueError as error:
            raise ModelError(
                f"lora.targets {settings.targets!r} matches a module that takes no LoRA: {error}"
            ) from error
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def adapter_tensors(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """Return an adapter's parameters by their name inside ``model``."""
    return {
        name: p
        for name, p in model.named_parameters()
        if ".lora_" in name and f".{adapter}." in name
    }


def expected_names(model: nn.Module, settings: LoraSettings, adapter: str = "default") -> set[str]:
    """Return the adapter's parameter names that ``settings`` promise."""
    places = [name.removesuffix(".base_layer") for name in _matching(model, settings.targets)]
    return {f"{place}.lora_{side}.{adapter}.weight" for place in places for side in "AB"}


def save_adapter(
    model: nn.Module, settings: LoraSettings, folder: Path, adapter: str = "default"
) -> None:
    """Write the adapter as a folder that plain ``peft`` loads onto the base CLIP model."""
    tensors = {
        _PREFIX + name.replace(f".{adapter}.", "."): p.detach().cpu().contiguous()
        for name, p in adapter_tensors(model, adapter).items()
    }
    config: dict[str, Any] = cast("Any", _peft_config(settings)).to_dict()
    config["inference_mode"] = True
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    write_json(folder / CONFIG, dict(sorted(plain.items())))
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))


def load_adapter(model: nn.Module, folder: Path, adapter: str = "default") -> None:
    """Copy the adapter of ``folder`` into the LoRA layers of ``model``.

    Raises:
        ModelError: the file is missing, damaged or of another shape.
    """
    wanted = adapter_tensors(model, adapter)
    names = {name: _PREFIX + name.replace(f".{adapter}.", ".") for name in wanted}
    found = read_tensors(folder / WEIGHTS, set(names.values()))
    copy_tensors({names[name]: parameter for name, parameter in wanted.items()}, found, folder)


def read_tensors(path: Path, names: set[str]) -> dict[str, Tensor]:
    """Read a safetensors file that has to hold exactly ``names``.

    Raises:
        ModelError: the file is missing, damaged or holds other tensors.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is missing or damaged: make the encoder again") from error
    if set(found) != names:
        odd = sorted(set(found) ^ names)[0]
        raise ModelError(f"{path} does not fit its config.json (first difference: {odd})")
    return found


def copy_tensors(to: dict[str, nn.Parameter], found: dict[str, Tensor], where: Path) -> None:
    """Copy ``found`` into parameters of the same names and shapes.

    Raises:
        ModelError: a shape differs.
    """
    with torch.no_grad():
        for name, parameter in to.items():
            if parameter.shape != found[name].shape:
                shapes = f"{tuple(found[name].shape)} instead of {tuple(parameter.shape)}"
                raise ModelError(f"{where}: {name} has shape {shapes}: make the encoder again")
            parameter.copy_(found[name])


def _matching(model: nn.Module, targets: str) -> list[str]:
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ModelError(f"lora.targets {targets!r} is no regular expression: {error}") from error
    return [name for name, _ in model.named_modules() if pattern.fullmatch(name)]


def _peft_config(settings: LoraSettings) -> LoraConfig:
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=settings.targets,
        bias="none",
    )
