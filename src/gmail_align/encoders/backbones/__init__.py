"""The models that an encoder can be built on: one file each, and the table that names them."""

from __future__ import annotations

from pathlib import Path

from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.backbones.clip import ClipBackbone
from gmail_align.encoders.backbones.siglip import SiglipBackbone
from gmail_align.encoders.backbones.vit import VitBackbone
from gmail_align.encoders.folder import read_config
from gmail_align.errors import ModelError

BACKBONES: dict[str, type[Backbone]] = {
    "clip": ClipBackbone,
    "siglip": SiglipBackbone,
    "vit": VitBackbone,
}
"""``model_type`` of a folder's ``config.json`` -> the class that knows such models."""


def load_backbone(folder: Path) -> Backbone:
    """Load a plain Hugging Face model in fp32, frozen and in evaluation mode.

    Raises:
        ModelError: the folder holds another kind of model, or its weights are missing or damaged.
    """
    kind = str(read_config(folder).get("model_type"))
    if kind not in BACKBONES:
        known = ", ".join(sorted(BACKBONES))
        raise ModelError(
            f"{folder} holds a model of type {kind!r}, which cannot be a base: use one of {known}"
        )
    return BACKBONES[kind].load(folder)
