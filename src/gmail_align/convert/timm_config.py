"""What timm's own description of a ViT may say: an allow-list, as for open_clip's."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gmail_align.config import Config
from gmail_align.convert.descriptions import honoured
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.errors import ModelError, damage_explained

TIMM_CONFIG = "config.json"
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
_PLAIN = re.compile(f"(vit|deit)_({'|'.join(_HEADS)})_patch\\d+_\\d+")
"""Architectures that are a ViT with nothing added, so that its tensors tell all but the heads."""


class PretrainedConfig(Config):
    """``pretrained_cfg``: how the weights were made, and how a photo becomes their input."""

    input_size: tuple[Literal[3], int, int] | None = None
    """Channels and sides of an image."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """The filter."""
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    """The image's side, in parts of the shortest side that is resized before the centre is cut."""
    crop_mode: Literal["center"] = "center"
    """Whether the centre is cut."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each channel."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Deviation of each channel."""
    architecture: str | None = None
    tag: str | None = None
    url: str | None = None
    file: str | None = None
    source: str | None = None
    hf_hub_id: str | None = None
    hf_hub_filename: str | None = None
    custom_load: Any = False
    """Any value: the weights are given."""
    license: str | None = None
    origin_url: str | None = None
    paper_ids: Any = None
    paper_name: str | None = None
    description: str | None = None
    notes: Any = None
    num_classes: int | None = None
    """Any value: a classifier is left behind, and so are its names."""
    label_offset: int | bool | None = None
    label_names: Any = None
    label_descriptions: Any = None
    classifier: Any = None
    first_conv: Any = None
    pool_size: Any = None
    """Any value: a ViT does not have one."""
    fixed_input_size: bool = True
    min_input_size: Any = None
    test_input_size: Any = None
    test_crop_pct: float | None = None
    """Any value: the size of the weights' own positions is taken."""


class ModelArguments(Config):
    """``model_args``: what the model was made with, which newer timm writes in full."""

    num_classes: Any = None
    """Any value: a classifier is left behind."""
    img_size: Any = None
    """Any value: the weights have positions."""
    in_chans: Literal[3] = 3
    """Channels of an image."""
    global_pool: Literal["token"] = "token"
    """Where the features are read: at the class token."""


class TimmConfig(Config):
    """timm's ``config.json``."""

    architecture: str
    """Name of the model."""
    num_classes: int | None = None
    """Any value: a classifier is left behind."""
    num_features: int | None = None
    """Width of the features."""
    global_pool: Literal["token"] = "token"
    """Where the features are read: at the class token."""
    model_args: ModelArguments | None = None
    """Arguments of the model."""
    pretrained_cfg: PretrainedConfig = PretrainedConfig()
    """How a photo becomes the model's input."""
    labels: Any = None
    label_names: Any = None
    label_descriptions: Any = None

    @classmethod
    def from_folder(cls, folder: Path) -> TimmConfig | None:
        """Read the description in a folder; None where there is none of timm's.

        Raises:
            ModelError: it is damaged, or says something that cannot be honoured.
        """
        path = folder / TIMM_CONFIG
        if not path.exists():
            return None
        with damage_explained(path, ModelError):
            described = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(described, dict) or "architecture" not in described:
            return None
        config = honoured(cls, described, path)
        if not _PLAIN.fullmatch(config.architecture):
            raise ModelError(
                f"{path} says architecture = {config.architecture!r}, which is not a plain ViT "
                "(such as vit_base_patch16_224): it cannot be converted"
            )
        return config

    def heads(self, given: int | None) -> int:
        """Return the attention heads that the architecture has.

        Raises:
            ModelError: others were given.
        """
        heads = _HEADS[self.architecture.split("_")[1]]
        if given not in (None, heads):
            raise ModelError(
                f"{TIMM_CONFIG} says architecture = {self.architecture}, which has {heads} heads, "
                f"but --heads {given} was given: leave it out"
            )
        return heads

    def preprocess(self, size: int, width: int) -> Preprocess:
        """Return the image transform of a model of this size of images and this width.

        Raises:
            ModelError: the description is of other sizes.
        """
        own = self.pretrained_cfg
        sides = own.input_size[1:] if own.input_size else (size,)
        _compare("pretrained_cfg.input_size", max(sides, key=lambda side: abs(side - size)), size)
        _compare("num_features", self.num_features, width)
        shortest = math.floor(size / own.crop_pct)
        return Preprocess(
            size,
            mean=own.mean,
            std=own.std,
            interpolation=own.interpolation,
            resize_to=None if shortest == size else shortest,
        )


def _compare(key: str, described: int | None, actual: int) -> None:
    if described not in (None, actual):
        raise ModelError(f"{TIMM_CONFIG} says {key} = {described}, but the weights have {actual}")
