"""Configuration of LLaVA's training and of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from gmail_align.config import Config
from gmail_align.encoders.route import Route
from gmail_align.training.config import OptimConfig

TemplateName = Literal["plain", "vicuna_v1", "llama3", "chatml"]
VisualTokens = Literal["patches", "pooled", "dense", "residual"]


class LlavaOptim(OptimConfig):
    """LLaVA's published optimisation of its second stage, where the data set the steps."""

    steps: int = Field(default=-1, ge=-1)
    """Optimiser steps; -1 takes as many as ``epochs`` needs."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the samples."""
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate; LLaVA takes 1e-3 where the projector alone is trained."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    schedule: Literal["cosine", "cosine_restarts", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""


class LanguageLora(Config):
    """Low-rank adaptation of the language model, with LLaVA's published settings."""

    rank: int = Field(default=128, ge=1)
    """Rank of each update."""
    alpha: float = Field(default=256.0, gt=0)
    """Scale of the update; it is multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """How often an input of an update is dropped."""


class LlavaConfig(Config):
    """LLaVA (Liu et al. 2023) on an encoder of ours."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llava15_first": {
            "template": "plain",
            "optim": {"lr": 1e-3, "warmup": 65},
        },
        "llava15_second": {
            "template": "vicuna_v1",
            "tune": "full",
            "square": "pad",
            "optim": {"lr": 2e-5, "warmup": 156},
        },
        "llava15_lora": {
            "template": "vicuna_v1",
            "tune": "lora",
            "square": "pad",
            "optim": {"lr": 2e-4, "warmup": 156},
        },
        "llava_llama3_second": {
            "template": "llama3",
            "tune": "full",
            "square": "pad",
            "optim": {"lr": 2e-5, "warmup": 156},
        },
        "tabletop": {
            "tune": "full",
            "row_tokens": 512,
            "batch_rows": 4,
            "optim": {"lr": 2e-3, "warmup": 20, "weight_decay": 0.01},
        },
    }
    """The stages of LLaVA-1.5, over one epoch; warm-up is 3% of the published steps. ``tabletop``
    trains the shipped Llama on a CPU."""

    template: TemplateName = "vicuna_v1"
    """How conversations are laid out: ``plain`` (LLaVA's first stage), ``vicuna_v1``, ``llama3`` or
    ``chatml``. The tokenizer must have its control tokens."""
    tune: Literal["projector", "lora", "full"] = "projector"
    """Train the projector alone, or the language model too, by LoRA or in full. The vision tower is
    never trained. LoRA is merged into the saved model."""
    lora: LanguageLora = LanguageLora()
    """The adapter of ``tune = "lora"``."""
    reads: Route = Route.FROZEN
    """Route whose vision tower the saved model reads images with."""
    square: Literal["crop", "pad"] = "crop"
    """How an image becomes a square: as the encoder's preprocessor does, or by putting it on a
    square of the mean colour first, as LLaVA-1.5's second stage does."""
    visual_tokens: VisualTokens = "patches"
    """What the language model sees of an image. ``patches``: the tower's patches. ``pooled``: the
    feature behind the route's head, then the patches. ``dense``: every patch of the last layer,
    behind the route's head. ``residual``: patches plus a matrix times the patches, one matrix for
    each adapted route, zero at first."""
    pooled_tokens: int = Field(default=1, ge=1)
    """Tokens that ``visual_tokens = "pooled"`` makes of the feature."""
    prompt: str = "Describe the image."
    """What is asked about each image if the data are captions."""
    row_tokens: int = Field(default=2048, ge=16)
    """Tokens of a packed row; no sample may be longer. An image takes as many tokens as it has
    patches."""
    batch_rows: int = Field(default=8, ge=1)
    """Rows in a training step."""
    rows_at_once: int | None = Field(default=None, ge=1)
    """Rows that go through the model together; by default all of a step. The result is the same."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass in training. What is trained and the loss stay in float32.
    Under ``bfloat16``, what is frozen is held in it meanwhile, and saved as it was."""
    recompute_layers: bool = False
    """Keep the input of every layer alone, and compute the layer again for its gradient (gradient
    checkpointing): less memory, about a third more work."""
    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"
    """Kernel of the language model; ``auto`` takes flash-attention where it is installed and can
    be used (a GPU, bfloat16)."""
    parallel: Literal["replicate", "shard"] = "replicate"
    """What each process under torchrun holds: the whole model, or its part of every layer
    (FSDP2)."""
    keep_patches: bool | None = None
    """Compute each image's patches once and keep them on disk until the training is complete. By
    default this is done if the vision tower's work is more than a tenth of the language model's."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``; the same run on another device has the same identity."""
    optim: LlavaOptim = LlavaOptim()
    """Steps, rates and intervals."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that two equal models share."""
        same = {"device", "keep_patches", "recompute_layers", "attention", "parallel"}
        return self.model_dump(mode="json", exclude=same)


class AskConfig(Config):
    """How one question is answered."""

    max_tokens: int = Field(default=128, ge=1)
    """Longest answer in tokens, its end included."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""


class AnswerConfig(Config):
    """How the questions of a set are answered."""

    prompt: str | None = None
    """Ask this of every image, in place of a set of questions."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest answer in tokens, its end included."""
    batch_size: int = Field(default=16, ge=1)
    """Questions answered together."""
    shuffle_images: bool = False
    """Show each question the images of another one, to measure what the words alone answer."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``; the same run on another device has the same identity."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that two equal predictions share."""
        left_out = {"device"} if self.shuffle_images else {"device", "shuffle_images"}
        return self.model_dump(mode="json", exclude=left_out)
