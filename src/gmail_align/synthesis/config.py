"""Configuration of image generation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gmail_align.config import Config


class SynthesisConfig(Config):
    """What generates the images, and how."""

    model: str
    """Folder of a diffusers pipeline, or its id on the Hugging Face hub."""
    revision: str = ""
    """Branch, tag or commit of a hub id; empty is its default branch."""
    variant: str = ""
    """Variant of the weight files (``fp16``); empty is the plain files."""
    steps: int = Field(50, ge=1)
    """Denoising steps an image."""
    guidance_scale: float = Field(2.0, ge=0)
    """Classifier-free guidance; 1 or less turns it off. Low guidance is the norm for training
    data, because it keeps the images varied; 7.5 is what pipelines default to for looking at, and
    is an option here."""
    scheduler: Literal["pipeline", "ddim", "dpmpp", "euler"] = "pipeline"
    """Sampler: the pipeline's own, DDIM, DPM-Solver++ or Euler (flow-matching pipelines: only
    their own)."""
    images_per_caption: int = Field(1, ge=1)
    """Images generated from each caption."""
    batch_size: int = Field(16, ge=1)
    """Images denoised at once."""
    shard_size: int = Field(256, ge=1)
    """Captions a shard; a run that is killed loses at most one shard of work."""
    seed: int = 0
    """Seed of the noise; each image's noise depends on it, the caption's id and the image's
    number."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the model; ``auto`` is float16 on CUDA and float32 on a CPU."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    image_format: Literal["jpeg", "png"] = "jpeg"
    """Stored format; ``jpeg`` as real photos are, so that no encoder tells the two apart by
    compression."""
    quality: int = Field(95, ge=1, le=100)
    """JPEG quality."""
    height: int | None = Field(None, ge=8)
    """Pixels; the pipeline's own size when not given."""
    width: int | None = Field(None, ge=8)
    """Pixels; the pipeline's own size when not given."""
    safety: Literal["flag", "drop", "off"] = "flag"
    """What is done with the verdict of a pipeline's safety checker: kept in the image's record,
    the image left out, or not asked for. No image is ever painted black."""
    compile: bool = False
    """Compile the networks with torch.compile: minutes at the start, faster from then on."""
    writers: int = Field(2, ge=1)
    """Threads that encode and write images while the device goes on."""
    limit_quarantine: float = Field(0.01, ge=0, le=1)
    """Largest share of blank or non-finite images before the run stops."""
