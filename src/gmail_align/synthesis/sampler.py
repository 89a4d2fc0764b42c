"""Sampling: prompts and each image's own noise in, batches of pixels out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from gmail_align.errors import ConfigError, GmailAlignError, ModelError, first_line
from gmail_align.runtime import stable_seed
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.embeddings import Embedder, splits, text_limit, tokens_cut
from gmail_align.synthesis.pipelines import quiet


@dataclass(frozen=True)
class Request:
    """One image to generate: the ``k``-th of a caption."""

    caption_id: str
    k: int
    prompt: str


def image_seed(seed: int, caption_id: str, k: int) -> int:
    """Return the 63-bit seed of the ``k``-th image of a caption."""
    return stable_seed(seed, caption_id, k)


def initial_noise(seed: int, caption_id: str, k: int, shape: Sequence[int]) -> Float[Tensor, ...]:
    """Draw the noise that an image starts from, on the CPU and in float32.

    Args:
        seed: Seed of the run.
        caption_id: The caption.
        k: Number of the image among those of the caption.
        shape: Shape of one latent, (channels, height, width).

    Returns:
        Standard normal tensor of that shape.
    """
    generator = torch.Generator().manual_seed(image_seed(seed, caption_id, k))
    return torch.randn(tuple(shape), generator=generator)


def step_generator(seed: int, caption_id: str, k: int) -> torch.Generator:
    """Return the source of all further noise of an image, for samplers that add some."""
    return torch.Generator().manual_seed(stable_seed(seed, caption_id, k, "steps"))


class Sampler:
    """Generates images in batches of one size.

    What an image looks like does not depend on its neighbours, up to the rounding of kernels that
    depends on the batch size: noise is drawn for each image by itself, and a short batch is padded
    and cut.
    """

    def __init__(self, pipeline: Any, config: SynthesisConfig, batch_size: int) -> None:
        """Take a loaded pipeline."""
        self._pipeline, self._config, self.batch_size = pipeline, config, batch_size
        kind = splits(pipeline)
        guided = config.guidance_scale > 1
        self._embed = kind and Embedder(pipeline, kind, batch_size, guided=guided)
        self._takes_latents = kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
        scheduler = getattr(pipeline, "scheduler", None)
        self.scheduler = type(scheduler).__name__ if scheduler is not None else None

    def __call__(self, requests: Sequence[Request]) -> Float[Tensor, "b 3 h w"]:
        """Generate at most ``batch_size`` images.

        Returns:
            Float32 in [0, 1] where the pipeline is, one image a request; NaN where the model gave
            NaN. On a GPU the images may still be in the making.

        Raises:
            ConfigError: the batch does not fit in the GPU's memory.
            ModelError: the pipeline cannot be sampled with this configuration.
        """
        short = self.batch_size - len(requests)
        padded = [*requests, *[requests[-1]] * short]
        with self._errors_explained(), torch.inference_mode():
            images = self._pipeline(**self._arguments(padded), output_type="pt").images
        kept: Tensor = images[: len(requests)].float().clone()
        return kept

    def tokens_cut(self, requests: Sequence[Request]) -> list[int]:
        """Count, for each request, the tokens at the end of its prompt that no encoder reads."""
        with self._errors_explained():
            return tokens_cut(self._pipeline, [request.prompt for request in requests])

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            with quiet():
                yield
        except GmailAlignError:
            raise
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"a batch of {self.batch_size} images does not fit in the GPU's memory: run the "
                f"same command with a batch_size of {max(1, self.batch_size // 2)}"
            ) from error
        except Exception as error:
            raise ModelError(
                f"{type(self._pipeline).__name__} cannot be sampled: {first_line(error)}"
            ) from error

    def _arguments(self, requests: Sequence[Request]) -> dict[str, Any]:
        config = self._config
        arguments: dict[str, Any] = {
            "num_inference_steps": config.steps,
            "guidance_scale": config.guidance_scale,
        }
        prompts = [request.prompt for request in requests]
        arguments |= self._embed(prompts) if self._embed else {"prompt": prompts}
        if self._takes_latents:
            height, width = self._size()
            arguments |= {
                "height": height,
                "width": width,
                "latents": self._latents(requests),
                "generator": [
                    step_generator(config.seed, item.caption_id, item.k) for item in requests
                ],
            }
            return arguments
        arguments["generator"] = [self._generator(request) for request in requests]
        arguments["max_sequence_length"] = text_limit(self._pipeline)
        if config.height:
            arguments["height"] = config.height
        if config.width:
            arguments["width"] = config.width
        known = inspect.signature(self._pipeline.__call__).parameters
        return {
            name: value for name, value in arguments.items() if name in known and value is not None
        }

    def _generator(self, request: Request) -> torch.Generator:
        """Return the source of all noise of an image, for pipelines that draw it themselves."""
        seed = image_seed(self._config.seed, request.caption_id, request.k)
        return torch.Generator().manual_seed(seed)

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


class Pixels:
    """A batch of images as bytes, on their way from the device."""

    def __init__(self, images: Float[Tensor, "b 3 h w"]) -> None:
        """Queue the rounding and the copy behind what the device is doing; wait for nothing."""
        finite = images.isfinite().flatten(1).all(1)
        rounded = (images.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
        self._arrived: Any = None
        self._images, self._finite = rounded.permute(0, 2, 3, 1).contiguous(), finite
        if images.is_cuda:
            on_device = self._images, self._finite
            self._images, self._finite = (
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in on_device
            )
            for host, device in zip((self._images, self._finite), on_device, strict=True):
                host.copy_(device, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> tuple[UInt8[Tensor, "b h w 3"], Bool[Tensor, " b"]]:
        """Return the images on the CPU, and which of them are finite throughout."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._images, self._finite
