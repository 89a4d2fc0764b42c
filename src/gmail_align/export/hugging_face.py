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

from gmail_align.artifacts import write_bytes, write_json
from gmail_align.encoders.backbones import load_backbone
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.folder import copy_model, no_bars
from gmail_align.encoders.lora import TEXT_TOWER, WEIGHTS, save_adapter
from gmail_align.encoders.merge import adapted_tensors, adapter_name, head_weight
from gmail_align.encoders.text_tower import TEXT
from gmail_align.errors import ModelError
from gmail_align.export.source import ExportSource, pixels_of, tokens_of

_PEFT = "base_model.model."
HEAD = "head.safetensors"
"""The head behind an adapter, where the base has no place for it."""


def export_hf(source: ExportSource, out: Path) -> dict[str, float]:
    """Write a plain ``CLIPModel``; of a ViT, one for classification whose logits are the features.

    Raises:
        ModelError: a head has been trained for which the model has no place.
    """
    merged = source.merged
    baked = merged.projection is not None
    model = merged.exported(None if baked else head_weight(source.encoder, source.route))
    _save(model, out)
    source.write_processors(out)
    loaded = _load(type(model), out)
    what = f"the {type(model).__name__}, loaded again"

    def embed(pixels: Tensor) -> Tensor:
        return merged.exported_features(loaded, pixels)

    def embed_texts(texts: list[str]) -> Tensor:
        features: Tensor = loaded.get_text_features(**tokens_of(out, texts)).pooler_output
        return features

    return {
        "image": source.check(what, embed),
        "photo": source.check_photo(what, lambda image: embed(pixels_of(out, image))),
        "token ids": source.check_ids(
            what, lambda ids: loaded.get_text_features(ids).pooler_output
        ),
        "text": source.check_texts(what, embed_texts),
    }


def export_peft(source: ExportSource, out: Path) -> dict[str, float]:
    """Write an adapter that plain ``peft`` loads onto the base, with the head of a CLIP inside it.

    The base lies beside it, in ``base``. Behind other models, the head lies in ``head.safetensors``
    and has to be applied by hand.

    Raises:
        ModelError: there is no adapter on this route.
    """
    encoder, backbone = source.encoder, source.encoder.backbone
    if encoder.lora is None or not adapted_tensors(encoder, source.route):
        raise ModelError(f"the route {source.route} of the encoder has no adapter: export it as hf")
    copy_model(encoder.base_folder, out / "base", backbone.state())
    source.write_processors(out / "base")
    head = head_weight(encoder, source.route)
    assert head is not None, "an adapted route has a head"
    written = _write_adapters(source, encoder.lora, out)
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
    return _check_peft(source, out, head)


def _write_adapters(source: ExportSource, lora: LoraSettings, out: Path) -> dict[str, Tensor]:
    """Write the adapter of the route, and return its tensors with those of the text tower's."""
    encoder, name = source.encoder, adapter_name(source.encoder, source.route)
    tensors: dict[str, Tensor] = {}
    if encoder.adapts_texts and source.route.adapted:
        save_adapter(encoder.clip, lora, out, TEXT, TEXT_TOWER)
        tensors = load_file(out / WEIGHTS)
    if name is not None and lora.adapts_images:
        save_adapter(encoder.clip, lora, out, name)
        tensors |= load_file(out / WEIGHTS)
    return tensors


def _check_peft(source: ExportSource, out: Path, head: Tensor) -> dict[str, float]:
    """Load the adapter by peft and compare."""
    base = load_backbone(out / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft about transformers
        model: Any = PeftModel.from_pretrained(base.plain, str(out)).eval()
    loaded, what = type(base).of(model.base_model.model), "the adapter, loaded by peft"

    def features(pixels: Tensor) -> Tensor:
        own = loaded.image_features(pixels)
        return own if base.projection is not None else own @ head.T

    def embed_texts(texts: list[str]) -> Tensor:
        tokens = tokens_of(out / "base", texts)
        ids = tokens["input_ids"]
        return loaded.text_features(ids, tokens.get("attention_mask", torch.ones_like(ids)))

    return {
        "image": source.check(what, features),
        "photo": source.check_photo(what, lambda image: features(pixels_of(out / "base", image))),
        "token ids": source.check_ids(
            what, lambda ids: loaded.text_features(ids, torch.ones_like(ids))
        ),
        "text": source.check_texts(what, embed_texts),
    }


def export_llava(source: ExportSource, out: Path) -> dict[str, float]:
    """Write a ``CLIPVisionModelWithProjection``: the folder that LLaVA takes as its vision tower.

    It is this class because other versions of transformers load a saved ``CLIPVisionModel`` as
    noise, with no more than a warning. What LLaVA reads (the patches before the last layer) is
    compared by the class that LLaVA loads.
    """
    clip: Any = source.merged.plain
    config = CLIPVisionConfig.from_dict(clip.config.vision_config.to_dict())
    config.projection_dim = clip.config.projection_dim
    tower = CLIPVisionModelWithProjection(config)
    wanted = ("vision_model.", "visual_projection.")
    tower.load_state_dict({k: v for k, v in clip.state_dict().items() if k.startswith(wanted)})
    _save(tower, out)
    write_json(out / "preprocessor_config.json", source.encoder.preprocess.to_config())
    whole, plain = (_load(kind, out) for kind in (CLIPVisionModelWithProjection, CLIPVisionModel))
    what = "the vision tower, loaded again"

    def patches(pixels: Tensor) -> Tensor:
        hidden: Tensor = plain(pixels, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:].mean(dim=1)

    return {
        "image": source.check(what, lambda pixels: whole(pixels).image_embeds),
        "photo": source.check_photo(what, lambda image: whole(pixels_of(out, image)).image_embeds),
        "patches": source.check_patches("LLaVA's patches", patches),
    }


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
