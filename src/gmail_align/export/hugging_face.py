"""Exports that transformers and peft load: a whole model, an adapter, LLaVA's vision tower."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.utils import logging as transformers_logging

from gmail_align.artifacts import write_bytes
from gmail_align.encoders.backbones import load_backbone
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.folder import copy_model, no_bars
from gmail_align.encoders.lora import TEXT_TOWER, WEIGHTS, save_adapter
from gmail_align.encoders.merge import adapted_tensors, adapter_name, head_weight
from gmail_align.encoders.text_tower import TEXT
from gmail_align.errors import ModelError
from gmail_align.export.ready import Ready

_PEFT = "base_model.model."
HEAD = "head.safetensors"
"""The head behind an adapter, where the base has no place for it."""


def export_hf(ready: Ready, out: Path) -> dict[str, float]:
    """Write a plain ``CLIPModel``; of a ViT, one for classification whose logits are the features.

    Raises:
        ModelError: a head has been trained for which the model has no place.
    """
    merged = ready.merged
    baked = merged.projection is not None
    model = merged.exported(None if baked else head_weight(ready.encoder, ready.route))
    _save(model, out)
    ready.copy_processors(out)
    loaded = _load(type(model), out)
    what = f"the {type(model).__name__}, loaded again"
    image = ready.check(what, lambda pixels: merged.exported_features(loaded, pixels))
    if not merged.has_texts:
        return {"image": image}
    texts = ready.check_texts(what, lambda ids: loaded.get_text_features(ids).pooler_output)
    return {"image": image, "text": texts}


def export_peft(ready: Ready, out: Path) -> dict[str, float]:
    """Write an adapter that plain ``peft`` loads onto the base, with the head of a CLIP inside it.

    The base lies beside it, in ``base``. Behind other models, the head lies in ``head.safetensors``
    and has to be applied by hand.

    Raises:
        ModelError: there is no adapter on this route.
    """
    encoder, backbone = ready.encoder, ready.encoder.backbone
    if encoder.lora is None or not adapted_tensors(encoder, ready.route):
        raise ModelError(f"the route {ready.route} of this encoder has no adapter: export it as hf")
    copy_model(encoder.base_folder, out / "base", encoder.base_state())
    head = head_weight(encoder, ready.route)
    assert head is not None, "an adapted route has a head"
    written = _write_adapters(ready, encoder.lora, out)
    tensors = {
        _PEFT + backbone.plain_name(name.removeprefix(_PEFT)): tensor
        for name, tensor in written.items()
    }
    config = cast("Any", LoraConfig.from_pretrained(out))
    config.base_model_name_or_path = "base"
    if backbone.projection is not None:
        tensors[_PEFT + backbone.projection] = head
        config.modules_to_save = [backbone.projection.removesuffix(".weight")]
    else:
        write_bytes(out / HEAD, save({"weight": head.contiguous()}, {"format": "pt"}))
    names = (name.removeprefix(_PEFT) for name in tensors if ".lora_" in name)
    config.target_modules = {name.partition(".lora_")[0] for name in names}
    config.save_pretrained(out)
    write_bytes(out / WEIGHTS, save(tensors, {"format": "pt"}))
    return _check_peft(ready, out, head)


def _write_adapters(ready: Ready, lora: LoraSettings, out: Path) -> dict[str, Tensor]:
    """Write the adapter of the route, and return its tensors with those of the text tower's."""
    encoder, name = ready.encoder, adapter_name(ready.encoder, ready.route)
    found: dict[str, Tensor] = {}
    if encoder.adapts_texts and ready.route.adapted:
        save_adapter(encoder.clip, lora, out, TEXT, TEXT_TOWER)
        found = load_file(out / WEIGHTS)
    if name is not None and lora.adapts_images:
        save_adapter(encoder.clip, lora, out, name)
        found |= load_file(out / WEIGHTS)
    return found


def _check_peft(ready: Ready, out: Path, head: Tensor) -> dict[str, float]:
    """Load the adapter by peft and compare."""
    base = load_backbone(out / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft about transformers
        model: Any = PeftModel.from_pretrained(base.plain, str(out)).eval()
    loaded, what = type(base).of(model.base_model.model), "the adapter, loaded by peft"

    def features(pixels: Tensor) -> Tensor:
        own = loaded.image_features(pixels)
        return own if base.projection is not None else own @ head.T

    differences = {"image": ready.check(what, features)}
    if base.has_texts:
        differences["text"] = ready.check_texts(
            what, lambda ids: loaded.text_features(ids, torch.ones_like(ids))
        )
    return differences


def export_llava(ready: Ready, out: Path) -> dict[str, float]:
    """Write a ``CLIPVisionModelWithProjection``: the folder that LLaVA takes as its vision tower.

    It is this class because other versions of transformers load a saved ``CLIPVisionModel`` as
    noise, with no more than a warning. What LLaVA reads (the patches before the last layer) is
    compared by the class that LLaVA loads.
    """
    clip: Any = ready.merged.plain
    config = CLIPVisionConfig.from_dict(clip.config.vision_config.to_dict())
    config.projection_dim = clip.config.projection_dim
    tower = CLIPVisionModelWithProjection(config)
    wanted = ("vision_model.", "visual_projection.")
    tower.load_state_dict({k: v for k, v in clip.state_dict().items() if k.startswith(wanted)})
    _save(tower, out)
    for path in ready.encoder.base_folder.glob("*processor_config.json"):
        (out / path.name).write_bytes(path.read_bytes())
    whole, plain = (_load(kind, out) for kind in (CLIPVisionModelWithProjection, CLIPVisionModel))
    image = ready.check("the vision tower, loaded again", lambda x: whole(x).image_embeds)

    def patches(pixels: Tensor) -> Tensor:
        hidden: Tensor = plain(pixels, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:].mean(dim=1)

    return {"image": image, "patches": ready.check_patches("LLaVA's patches", patches)}


def _save(model: Any, out: Path) -> None:
    with no_bars():
        model.save_pretrained(out)


def _load(kind: Any, out: Path) -> Any:
    """Load a folder without transformers' notes on unused weights: the probe says what is wrong."""
    logging: Any = transformers_logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with no_bars():
            return kind.from_pretrained(out, local_files_only=True).eval()
    finally:
        logging.set_verbosity(level)
