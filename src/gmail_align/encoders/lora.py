"""The LoRA adapter: injection by regular expression, its tensors, and PEFT's folder format."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gmail_align.artifacts import write_bytes, write_json
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.stored import require_finite
from gmail_align.errors import ModelError, damage_explained
from gmail_align.runtime import stable_seed

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
VISION_TOWER, TEXT_TOWER = "vision_model", "text_model"
_PREFIX = "base_model.model."
_PATIENCE = 5
"""Seconds that an expression may take to match a name."""


def inject(
    model: nn.Module,
    settings: LoraSettings,
    seed: int,
    adapter: str = "default",
    tower: str = VISION_TOWER,
) -> list[LoraLayer]:
    """Put LoRA layers into a tower in place and return them; their output is zero (B = 0).

    Args:
        model: A CLIP model; only modules inside the towers that are adapted may match.
        settings: Rank, scale and targets.
        seed: Seed of the A matrices; the global random state is left alone.
        adapter: Name of the adapter; a model may have several.
        tower: The tower that it is put into.

    Raises:
        ModelError: the targets match nothing, or a module that is not a linear layer of an adapted
            tower, or the rank is above a layer's own.
    """
    matched = _matching(model, settings, tower)
    outside = _outside(model, settings)
    if not matched or outside:
        known = {VISION_TOWER: "the vision tower", TEXT_TOWER: "the text tower"}
        whole = known[tower] if settings.towers != "both" else "the towers"
        what = f"{outside[0]!r} outside {whole}" if outside else "no module of the model"
        if not outside and tower == TEXT_TOWER:
            what = "no module of a text tower"
        raise ModelError(
            f"lora.targets {settings.targets!r} matches {what}: correct the expression"
        )
    for name in matched:
        _refuse_rank(settings, name, model.get_submodule(name))
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise ModelError(
                f"lora.targets {settings.targets!r} matches {name!r}, whose weight is used past "
                "any adapter, which would never learn: leave it out of the expression"
            )
    before = {
        layer: (list(layer.active_adapters), [p for p in layer.parameters() if p.requires_grad])
        for other in {VISION_TOWER, TEXT_TOWER} - {tower}
        for layer in _lora_layers(model, other)
    }
    with torch.random.fork_rng(devices=[]):
        named = () if adapter == "default" else (adapter,)
        torch.manual_seed(stable_seed(seed, "lora", *named))
        if hasattr(model, "peft_config"):  # peft's note of the first adapter makes it warn of two
            del model.peft_config
        try:
            inject_adapter_in_model(_peft_config(settings, tower), model, adapter)
        except ValueError as error:
            raise ModelError(
                f"lora.targets {settings.targets!r} matches a module that takes no LoRA: {error}"
            ) from error
    for layer, (active, trained) in before.items():  # peft switches every layer to the new adapter
        layer.set_adapter(active)
        for parameter in trained:
            parameter.requires_grad_(True)
    return list(_lora_layers(model, tower))


def _refuse_rank(settings: LoraSettings, name: str, module: nn.Module) -> None:
    """Refuse a rank that no update of a layer can have; it may take any amount of memory."""
    if isinstance(module, nn.Linear):
        most = min(module.weight.shape)
        if settings.rank > most:
            raise ModelError(
                f"lora.rank {settings.rank} is above {most}, the most that an update of {name} can "
                "have: lower it"
            )


def _lora_layers(model: nn.Module, tower: str) -> Iterator[LoraLayer]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and name.startswith(f"{tower}."):
            yield module


def adapter_tensors(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """Return an adapter's parameters by their name inside ``model``."""
    return {
        name: p
        for name, p in model.named_parameters()
        if ".lora_" in name and f".{adapter}." in name
    }


def expected_names(
    model: nn.Module,
    settings: LoraSettings,
    adapter: str = "default",
    tower: str = VISION_TOWER,
) -> set[str]:
    """Return the adapter's parameter names that ``settings`` promise."""
    places = [name.removesuffix(".base_layer") for name in _matching(model, settings, tower)]
    return {f"{place}.lora_{side}.{adapter}.weight" for place in places for side in "AB"}


def save_adapter(
    model: nn.Module,
    settings: LoraSettings,
    folder: Path,
    adapter: str = "default",
    tower: str = VISION_TOWER,
) -> None:
    """Write the adapter as a folder that plain ``peft`` loads onto the base CLIP model."""
    tensors = {
        _PREFIX + name.replace(f".{adapter}.", "."): p.detach().cpu().contiguous()
        for name, p in adapter_tensors(model, adapter).items()
    }
    config: dict[str, Any] = cast("Any", _peft_config(settings, tower)).to_dict()
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
    path, tensors = folder / WEIGHTS, read_tensors(folder / WEIGHTS, set(names.values()))
    copy_tensors({names[name]: parameter for name, parameter in wanted.items()}, tensors, path)


def read_tensors(path: Path, names: set[str]) -> dict[str, Tensor]:
    """Read a safetensors file that has to hold exactly ``names``.

    Raises:
        ModelError: the file is missing, damaged or holds other tensors.
    """
    with damage_explained(path, ModelError, "make the encoder again"):
        tensors = load_file(path)
    if set(tensors) != names:
        odd = sorted(set(tensors) ^ names)[0]
        raise ModelError(f"{path} does not fit its config.json (first difference: {odd})")
    return tensors


def copy_tensors(to: dict[str, nn.Parameter], tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors of ``path`` into parameters of the same names and shapes.

    Raises:
        ModelError: a shape differs, or a tensor holds NaN or infinity.
    """
    require_finite(tensors.items(), path, "make the encoder again")
    with torch.no_grad():
        for name, parameter in to.items():
            if parameter.shape != tensors[name].shape:
                shapes = f"{tuple(tensors[name].shape)} instead of {tuple(parameter.shape)}"
                raise ModelError(f"{path}: {name} has shape {shapes}: make the encoder again")
            parameter.copy_(tensors[name])


def pattern(settings: LoraSettings, tower: str) -> str:
    """Return the regular expression of the modules of one tower that are adapted."""
    targets = settings.targets
    if settings.towers == "vision":
        return targets
    if tower == TEXT_TOWER and TEXT_TOWER not in targets:
        targets = targets.replace(VISION_TOWER, TEXT_TOWER)
    return rf"(?={tower}\.)(?:{targets})"


def _matching(model: nn.Module, settings: LoraSettings, tower: str) -> list[str]:
    expression = _compiled(pattern(settings, tower), settings)
    return [name for name, _ in model.named_modules() if expression.fullmatch(name)]


def _outside(model: nn.Module, settings: LoraSettings) -> list[str]:
    """Return what the targets match in towers that are not adapted."""
    expression = _compiled(settings.targets, settings)
    towers = {"vision": (VISION_TOWER,), "text": (TEXT_TOWER,), "both": (VISION_TOWER, TEXT_TOWER)}
    inside = tuple(f"{tower}." for tower in towers[settings.towers])
    names = [name for name, _ in model.named_modules() if expression.fullmatch(name)]
    if settings.towers == "text" and TEXT_TOWER not in settings.targets:
        return []  # names of the vision tower stand for those of the text tower
    return [name for name in names if not name.startswith(inside)]


def _compiled(targets: str, settings: LoraSettings) -> re.Pattern[str]:
    try:
        expression = re.compile(targets)
    except re.error as error:
        raise ModelError(
            f"lora.targets {settings.targets!r} is not a regular expression: {error}"
        ) from error
    if settings.targets != LoraSettings().targets:
        _refuse_slow(targets)
    return expression


@cache
def _refuse_slow(targets: str) -> None:
    """Refuse an expression that takes for ever on a name of usual length.

    An expression cannot be stopped within a process, so another one tries it first.
    """
    names = [
        f"{tower}.encoder.layers.11.self_attn.out_proj" for tower in (VISION_TOWER, TEXT_TOWER)
    ]
    script = "import re, sys; [re.fullmatch(sys.argv[1], name) for name in sys.argv[2:]]"
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", script, targets, *names], timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"lora.targets {targets!r} takes more than {_PATIENCE} s to match one name: use an "
            "expression without repetitions inside repetitions"
        ) from error


def _peft_config(settings: LoraSettings, tower: str = VISION_TOWER) -> LoraConfig:
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=pattern(settings, tower),
        bias="none",
    )
