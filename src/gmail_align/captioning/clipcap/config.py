"""Configuration of ClipCap and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gmail_align.artifacts import load
from gmail_align.captioning.config import CaptionerConfig
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData, Folder
from gmail_align.config import Config
from gmail_align.errors import ConfigError


@dataclass(frozen=True)
class MapperShape:
    """Shape of a mapper; the last three belong to the transformer alone."""

    kind: Literal["mlp", "transformer"] = "mlp"
    """ClipCap's two variants."""
    prefix_length: int = 10
    """Embeddings that it makes of one feature."""
    clip_length: int = 40
    """Embeddings that a feature is spread over first."""
    layers: int = 8
    """Layers."""
    heads: int = 8
    """Attention heads of a layer."""


class ReleasedFaults(Config):
    """Faults of ClipCap's released code, each restored on request, for comparison."""

    untrained_end: bool = False
    """Captions are trained without their end-of-text token, so a captioner never learns to end."""
    zero_is_padding: bool = False
    """Token 0 (GPT-2's ``!``) counts as padding and is not learnt."""
    norm_mismatch: bool = False
    """Features are normalised in prediction but not in training."""
    end_at_full_stop: bool = False
    """A prediction ends at its first full stop, and without one at the longest length."""


class ClipCapConfig(CaptionerConfig):
    """ClipCap (Mokady et al. 2021)."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clipcap": {"optim": {"epochs": 10}},
        "clipcap_transformer": {
            "mapper": "transformer",
            "prefix_length": 40,
            "clip_length": 40,
            "optim": {"epochs": 10},
        },
        "clipcap_original": {"compat": "clipcap", "optim": {"epochs": 10}},
    }
    """The published variants, over 10 epochs of any training set."""

    prefix_length: int = Field(default=10, ge=1)
    """Tokens that the mapper makes of one image feature (k)."""
    mapper: Literal["mlp", "transformer"] = "mlp"
    """``mlp``: Linear(d, k*h/2), Tanh, Linear(k*h/2, k*h); ``transformer``: learned constants that
    look at the feature."""
    clip_length: int | None = Field(default=None, ge=1)
    """Embeddings that the transformer spreads a feature over; 40 by default."""
    layers: int | None = Field(default=None, ge=1)
    """Layers of the transformer; 8 by default."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of the transformer; 8 by default."""
    tune_language_model: bool | None = None
    """Train the language model too; by default with the MLP mapper and not with the transformer, as
    published."""
    normalise: bool = True
    """L2-normalise the features, both in training and in prediction."""
    norm: float | Literal["mean"] | None = None
    """Length that normalised features are brought to: a number, or ``mean`` for the mean length of
    the training features; 1 by default. Eq. 1 is a cosine and leaves the length of aligned features
    free."""
    compat: ReleasedFaults | None = None
    """Faults of the released code to restore; ``clipcap`` stands for all of them."""

    @field_validator("compat", mode="before")
    @classmethod
    def _all_faults(cls, value: object) -> object:
        """Let ``clipcap`` stand for every fault."""
        if value == "clipcap":
            return dict.fromkeys(ReleasedFaults.model_fields, True)
        if isinstance(value, str):
            raise ValueError("compat is 'clipcap' or a table of faults")
        return value

    @model_validator(mode="after")
    def _fitting(self) -> ClipCapConfig:
        transformer = (self.clip_length, self.layers, self.heads)
        if self.mapper == "mlp" and any(value is not None for value in transformer):
            raise ValueError("clip_length, layers and heads belong to mapper = 'transformer'")
        if self.norm is not None and not self.normalise:
            raise ValueError("norm is the length of normalised features: leave normalise on")
        if isinstance(self.norm, float) and not self.norm > 0:
            raise ValueError("norm is a length: give a positive number")
        return self

    @property
    def shape(self) -> MapperShape:
        """The mapper's shape."""
        return MapperShape(
            self.mapper,
            self.prefix_length,
            self.clip_length or 40,
            self.layers or 8,
            self.heads or 8,
        )

    @property
    def faults(self) -> ReleasedFaults:
        """The faults that are restored."""
        return self.compat or ReleasedFaults()

    @property
    def trains_language_model(self) -> bool:
        """Whether the language model is trained too."""
        chosen = self.tune_language_model
        return self.mapper == "mlp" if chosen is None else chosen


CONFIG = ClipCapConfig


def inputs(
    held: CaptionedImages | None, /, features: list[Folder], captions: list[Folder]
) -> CaptionerData:
    """Train ClipCap on features and their captions.

    Features are matched with captions by image: real images by their own id, generated images by
    the caption that they were generated from.

    Args:
        held: Held-out images, if there are any.
        features: Features of real or generated images; repeat it to train on several sets.
        captions: Their captions; one for each --features.
    """
    if len(features) != len(captions):
        raise ConfigError("--features and --captions come in pairs: give one for the other")
    images = (
        CaptionedImages(load(folder, "features"), load(texts))
        for folder, texts in zip(features, captions, strict=True)
    )
    return CaptionerData(tuple(images), validation=held)
