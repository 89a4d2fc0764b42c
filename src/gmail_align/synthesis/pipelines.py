"""Any text-to-image pipeline of diffusers, sampled from each image's own noise."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.utils import logging as transformers_logging

from gmail_align.errors import ConfigError, ModelError
from gmail_align.extras import require
from gmail_align.runtime import resolve_device, resolve_dtype
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.noise import initial_noise, step_generator
from gmail_align.synthesis.weights import read_index

_SCHEDULERS: Final = {
    "ddim": "DDIMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}


@dataclass(frozen=True)
class Request:
    """One image to generate: the ``k``-th of a caption."""

    caption_id: str
    k: int
    prompt: str


def choose_dtype(config: SynthesisConfig) -> torch.dtype:
    """Return the precision that a configuration means on its device.

    Raises:
        ConfigError: the device does not exist.
    """
    if config.dtype != "auto":
        return resolve_dtype(config.dtype)
    cuda = resolve_device(config.device).type == "cuda"
    return torch.float16 if cuda else torch.float32


def load_pipeline(folder: Path, config: SynthesisConfig) -> Any:
    """Load a pipeline from its folder, ready to sample: only safetensors, and no network.

    Raises:
        ModelError: it cannot be loaded, or cannot use the scheduler that was asked for.
        MissingExtraError: diffusers is not installed.
    """
    diffusers: Any = require("diffusers", "synthesis")
    skipped: dict[str, Any] = {}
    if "safety_checker" in read_index(folder):
        skipped = {"safety_checker": None, "requires_safety_checker": False}
    with _quiet():
        try:
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                variant=config.variant or None,
                torch_dtype=choose_dtype(config),
                **skipped,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0][:300]
            raise ModelError(f"the pipeline in {folder} cannot be loaded: {reason}") from error
    _set_scheduler(pipeline, config, diffusers)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(resolve_device(config.device))


class Sampler:
    """Generates images in batches of one size.

    What an image looks like does not depend on its neighbours, up to the rounding of kernels that
    depends on the batch size: noise is drawn for each image by itself, and a short batch is padded
    and cut.
    """

    def __init__(self, pipeline: Any, config: SynthesisConfig, batch_size: int) -> None:
        """Take a loaded pipeline."""
        stable_diffusion = require("diffusers", "synthesis").StableDiffusionPipeline
        self._pipeline, self._config, self.batch_size = pipeline, config, batch_size
        self._splits = isinstance(pipeline, stable_diffusion)
        self._nothing: Tensor | None = None

    def __call__(self, requests: Sequence[Request]) -> Float[Tensor, "b 3 h w"]:
        """Generate at most ``batch_size`` images.

        Returns:
            Float32 in [0, 1] on the CPU, one image a request; NaN where the model gave NaN.

        Raises:
            ConfigError: the batch does not fit in the GPU's memory.
            ModelError: the pipeline cannot be sampled with this configuration.
        """
        short = self.batch_size - len(requests)
        padded = [*requests, *[requests[-1]] * short]
        try:
            with torch.inference_mode(), _quiet():
                images = self._pipeline(**self._arguments(padded), output_type="pt").images
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"a batch of {self.batch_size} images does not fit in the GPU's memory: run the "
                f"same command with --set synthesis.batch_size={max(1, self.batch_size // 2)}"
            ) from error
        except (ValueError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0][:300]
            raise ModelError(
                f"{type(self._pipeline).__name__} cannot be sampled: {reason}"
            ) from error
        kept: Tensor = images[: len(requests)].float().cpu().clone()
        return kept

    def _arguments(self, requests: Sequence[Request]) -> dict[str, Any]:
        config = self._config
        arguments: dict[str, Any] = {
            "num_inference_steps": config.steps,
            "guidance_scale": config.guidance_scale,
            "generator": [
                step_generator(config.seed, item.caption_id, item.k) for item in requests
            ],
        }
        if self._splits:
            height, width = self._size()
            arguments |= {"height": height, "width": width, "latents": self._latents(requests)}
            return {**arguments, **self._embeddings(requests)}
        if config.height:
            arguments["height"] = config.height
        if config.width:
            arguments["width"] = config.width
        known = inspect.signature(self._pipeline.__call__).parameters
        chosen = {name: value for name, value in arguments.items() if name in known}
        return {**chosen, "prompt": [request.prompt for request in requests]}

    def _embeddings(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Embed each distinct prompt once, in a batch of one size; the empty prompt once a run."""
        distinct = list(dict.fromkeys(request.prompt for request in requests))
        padded = [*distinct, *[distinct[-1]] * (self.batch_size - len(distinct))]
        rows = [distinct.index(request.prompt) for request in requests]
        arguments = {"prompt_embeds": self._embed(padded)[rows]}
        if self._config.guidance_scale > 1:
            if self._nothing is None:
                self._nothing = self._embed([""])
            arguments["negative_prompt_embeds"] = self._nothing.expand(len(requests), -1, -1)
        return arguments

    def _embed(self, prompts: list[str]) -> Float[Tensor, "b tokens dim"]:
        embedded: Tensor = self._pipeline.encode_prompt(prompts, self._pipeline.device, 1, False)[0]
        return embedded

    def _size(self) -> tuple[int, int]:
        """Return height and width in pixels: as configured, else the model's own."""
        side, factor = self._pipeline.unet.config.sample_size, self._pipeline.vae_scale_factor
        own = (side, side) if isinstance(side, int) else tuple(side)
        return self._config.height or own[0] * factor, self._config.width or own[1] * factor

    def _latents(self, requests: Sequence[Request]) -> Float[Tensor, "b channels h w"]:
        unet, factor, seed = self._pipeline.unet, self._pipeline.vae_scale_factor, self._config.seed
        height, width = self._size()
        shape = (unet.config.in_channels, height // factor, width // factor)
        noise = [initial_noise(seed, request.caption_id, request.k, shape) for request in requests]
        return torch.stack(noise).to(self._pipeline.device, unet.dtype)


def _set_scheduler(pipeline: Any, config: SynthesisConfig, diffusers: Any) -> None:
    if config.scheduler == "pipeline":
        return
    own = pipeline.scheduler
    if "Flow" in type(own).__name__:
        raise ModelError(
            f"{type(pipeline).__name__} is a flow-matching pipeline and samples only with its own "
            "scheduler: --set synthesis.scheduler=pipeline"
        )
    chosen: Any = getattr(diffusers, _SCHEDULERS[config.scheduler])
    with _quiet():
        pipeline.scheduler = chosen.from_config(own.config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence diffusers' and transformers' advice and bars; errors still come as exceptions."""
    logs: list[Any] = [require("diffusers", "synthesis").utils.logging, transformers_logging]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, (level, bars) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()
