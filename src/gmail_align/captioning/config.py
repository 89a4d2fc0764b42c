"""Configuration of ClipCap and of prediction, and ClipCap's presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gmail_align.captioning.shape import MapperShape
from gmail_align.config import Config
from gmail_align.training.config import OptimConfig

_COCO_STEPS = 141_680


class CaptionerOptim(OptimConfig):
    """ClipCap's published optimisation: 10 epochs of COCO (566,747 captions) in batches of 40.

    One departure: gradients are clipped at ``clip_norm``, where ClipCap does not clip.
    """

    steps: int = Field(default=_COCO_STEPS, ge=0)
    """Optimiser steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the captions, which then set the steps; None leaves ``steps`` as it is."""
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate, of the mapper and of GPT-2."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    schedule: Literal["cosine", "cosine_restarts", "linear", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup: int = Field(default=5_000, ge=0)
    """Steps of linear warm-up."""
    checkpoint_every: int = Field(default=5_000, ge=1)
    """Steps between checkpoints."""
    evaluate_every: int = Field(default=5_000, ge=1)
    """Steps between evaluations on validation."""

    @model_validator(mode="after")
    def _one_length(self) -> CaptionerOptim:
        if self.epochs is not None and self.steps != _COCO_STEPS:
            raise ValueError(
                "steps and epochs are both given: leave one out, and over a preset, which gives"
                " epochs, set epochs"
            )
        return self

    def over(self, captions: int, batch_size: int) -> OptimConfig:
        """Return the optimisation of so many captions, with its steps settled."""
        settled = {name: getattr(self, name) for name in OptimConfig.model_fields}
        if self.epochs is not None:
            settled["steps"] = math.ceil(self.epochs * captions / batch_size)
        return OptimConfig(**settled)


class Compat(Config):
    """Faults of ClipCap's released code, each restored on request, for comparison."""

    untrained_end: bool = False
    """Captions are trained without their end-of-text token, so a captioner never learns to end."""
    zero_is_padding: bool = False
    """Token 0 (GPT-2's ``!``) is taken for padding and left out of the loss: it is not learnt."""
    norm_mismatch: bool = False
    """Features are normalised in prediction and left as they are in training."""
    end_at_full_stop: bool = False
    """A prediction ends at its first full stop, and goes on to the longest length without one."""


class ClipCapConfig(Config):
    """ClipCap (Mokady et al. 2021)."""

    prefix_length: int = Field(default=10, ge=1)
    """Tokens that the mapper makes of one image feature (k)."""
    mapper: Literal["mlp", "transformer"] = "mlp"
    """``mlp``: Linear(d, k*h/2), Tanh, Linear(k*h/2, k*h); ``transformer``: learned constants that
    look at the feature."""
    clip_length: int | None = Field(default=None, ge=1)
    """Embeddings that the transformer spreads a feature over; 40 when None."""
    layers: int | None = Field(default=None, ge=1)
    """Layers of the transformer; 8 when None."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of the transformer; 8 when None."""
    tune_gpt2: bool | None = None
    """Train GPT-2 along; as published when None: with the MLP, not with the transformer."""
    normalise: bool = True
    """L2-normalise the features, in training and in prediction alike."""
    norm: float | Literal["mean"] | None = None
    """Length that normalised features are brought to: 1 when None, ``mean`` is the mean length of
    the training features. Eq. 1 is a cosine and leaves the length of aligned features free."""
    compat: Compat | None = None
    """Faults of the released code to restore; ``clipcap`` stands for all of them."""
    max_tokens: int = Field(default=67, ge=2)
    """Longest caption in tokens, its end-of-text token included, in training and in prediction."""
    beam: int = Field(default=5, ge=1)
    """Beams of the search that predicts a caption; 1 is greedy."""
    batch_size: int = Field(default=40, ge=1)
    """Captions in a training step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass in training; weights and the loss stay in float32."""
    select: Literal["loss", "cider"] | None = None
    """What picks the step on validation: the loss (also when None), or CIDEr of greedy captions."""
    validation_images: int | None = Field(default=None, ge=2)
    """Images captioned for each CIDEr; all of validation when None."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``; no part of what makes two runs the same."""
    optim: CaptionerOptim = CaptionerOptim()
    """Steps, rates and intervals."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # The published variants, over 10 epochs of whatever they are trained on.
        "clipcap": {"optim": {"epochs": 10}},
        "clipcap_transformer": {
            "mapper": "transformer",
            "prefix_length": 40,
            "clip_length": 40,
            "optim": {"epochs": 10},
        },
        "clipcap_original": {"compat": "clipcap", "optim": {"epochs": 10}},
    }

    @field_validator("optim", mode="before")
    @classmethod
    def _any_optim(cls, value: object) -> object:
        """Take a plain ``OptimConfig`` as it is."""
        return value.model_dump() if isinstance(value, OptimConfig) else value

    @field_validator("compat", mode="before")
    @classmethod
    def _all_faults(cls, value: object) -> object:
        """Let ``clipcap`` stand for every fault."""
        if value == "clipcap":
            return dict.fromkeys(Compat.model_fields, True)
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
    def trains_gpt2(self) -> bool:
        """Whether GPT-2 is trained along."""
        return self.mapper == "mlp" if self.tune_gpt2 is None else self.tune_gpt2


class PredictConfig(Config):
    """How captions are predicted."""

    method: Literal["beam", "greedy", "nucleus"] = "beam"
    """Beam search, the likeliest token each time, or a draw from the likeliest tokens."""
    beam: int | None = Field(default=None, ge=1)
    """Beams; the captioner's own number when None; 1 is greedy."""
    length_penalty: float = 1.0
    """Power of its length that a beam's log-probability is divided by; 1 is ClipCap's mean."""
    top_p: float = Field(default=0.8, gt=0, le=1)
    """Probability that the likeliest tokens have together which ``nucleus`` draws from."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits that ``nucleus`` draws from."""
    seed: int = 0
    """Seed of ``nucleus``: an image's caption depends on it and on the image's id alone."""
    batch_size: int = Field(default=128, ge=1)
    """Images predicted together."""
    any_encoder: bool = False
    """Read features of another encoder than the captioner was trained on."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``; no part of what makes two runs the same."""

    def identity(self) -> dict[str, Any]:
        """Return what makes two predictions the same; what was not chosen counts as absent."""
        default = PredictConfig()
        changed = {
            name: getattr(self, name)
            for name in ("method", "length_penalty", "top_p", "temperature", "seed")
            if getattr(self, name) != getattr(default, name)
        }
        return {"beam": self.beam, "batch_size": self.batch_size, **changed}
