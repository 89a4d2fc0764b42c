"""What every captioner's configuration holds, and the configuration of prediction."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gmail_align.config import Config
from gmail_align.training.config import OptimConfig

VALIDATION_BATCH = 256
_COCO_STEPS = 141_680


class CaptionerOptim(OptimConfig):
    """ClipCap's published optimisation: 10 epochs of COCO (566,747 captions) in batches of 40.

    One departure: gradients are clipped at ``clip_norm``, where ClipCap does not clip.
    """

    steps: int = Field(default=_COCO_STEPS, ge=0)
    """Optimiser steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the captions; if set, they determine the steps."""
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate, of the mapper and of the language model."""
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
                "steps and epochs are both given: leave one out. Presets give epochs, so set"
                " epochs with a preset"
            )
        return self

    def over(self, captions: int, batch_size: int) -> OptimConfig:
        """Return the optimisation of so many captions, with its steps settled."""
        settled = {name: getattr(self, name) for name in OptimConfig.model_fields}
        if self.epochs is None:
            self.require_chosen(batch_size, captions, "captions")
        else:
            settled["steps"] = math.ceil(self.epochs * captions / batch_size)
        return OptimConfig(**settled)


class CaptionerConfig(Config):
    """What all captioners have in common."""

    reads_texts: ClassVar[bool] = False
    """Whether it is trained on features of captions; else on those of images alone."""
    max_tokens: int = Field(default=67, ge=2)
    """Longest caption in tokens, its end-of-text token included, in training and in prediction."""
    beam: int = Field(default=5, ge=1)
    """Beams of the search that predicts a caption; 1 is greedy."""
    batch_size: int = Field(default=40, ge=1)
    """Captions in a training step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass in training; weights and the loss stay in float32."""
    select: Literal["loss", "cider"] | None = None
    """What picks the step on validation: the loss (the default), or CIDEr of greedy captions."""
    validation_images: int | None = Field(default=None, ge=2)
    """Validation images that are captioned for each CIDEr; by default all."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``; the same run on another device has the same identity."""
    optim: CaptionerOptim = CaptionerOptim()
    """Steps, rates and intervals."""

    @field_validator("optim", mode="before")
    @classmethod
    def _any_optim(cls, value: object) -> object:
        """Take a plain ``OptimConfig`` as it is."""
        if isinstance(value, OptimConfig) and not isinstance(value, CaptionerOptim):
            return value.model_dump()
        return value

    @property
    def reads_images(self) -> bool:
        """Whether it is trained on features of images."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return the settings that two equal captioners share."""
        return self.model_dump(mode="json", exclude={"device"})


class PredictConfig(Config):
    """How captions are predicted."""

    method: Literal["beam", "greedy", "nucleus"] = "beam"
    """Beam search, the likeliest token each time, or a draw from the likeliest tokens."""
    beam: int | None = Field(default=None, ge=1)
    """Beams of the search; by default the captioner's own number; 1 is greedy."""
    length_penalty: float = 1.0
    """Exponent of the length that divides a beam's log-probability; 1 gives the mean, as in
    ClipCap."""
    top_p: float = Field(default=0.8, gt=0, le=1)
    """Total probability of the likeliest tokens, which ``nucleus`` draws from."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits that ``nucleus`` draws from."""
    seed: int = 0
    """Seed of ``nucleus``: an image's caption depends on it and on the image's id alone."""
    batch_size: int = Field(default=128, ge=1)
    """Images predicted together."""
    any_encoder: bool = False
    """Accept features of another encoder than the captioner was trained on."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``; the same run on another device has the same identity."""

    def identity(self) -> dict[str, Any]:
        """Return what makes two predictions the same; what was not chosen counts as absent."""
        default = PredictConfig()
        changed = {
            name: getattr(self, name)
            for name in ("method", "length_penalty", "top_p", "temperature", "seed")
            if getattr(self, name) != getattr(default, name)
        }
        return {"beam": self.beam, "batch_size": self.batch_size, **changed}
