"""The tabletop world's latent autoencoder: a small ``AutoencoderKL``, 64 px -> 8 x 8 x 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gmail_align.extras import require
from gmail_align.runtime import stable_seed
from gmail_align.tabletop.training.corpus import Corpus
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import FitReport, fit

LATENT_CHANNELS = 8
_KL_WEIGHT = 1e-5
_EDGE_WEIGHT = 1.0


def build_autoencoder() -> Any:
    """Return an untrained ``AutoencoderKL`` that shrinks images eightfold."""
    diffusers = require("diffusers", "synthesis")
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 48, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def optimisation(steps: int) -> OptimConfig:
    """Return the recipe of the autoencoder."""
    return OptimConfig(
        steps=steps, lr=2e-3, schedule="cosine", warmup=100, weight_decay=1e-4, checkpoint_every=200
    )


def train_autoencoder(
    vae: Any, corpus: Corpus, config: OptimConfig, folder: Path, *, seed: int = 0
) -> FitReport:
    """Train on random crops of half the side; for the last sixth of the steps on whole images."""
    vae.to(memory_format=torch.channels_last)

    def loss(step: int) -> dict[str, Tensor]:
        whole = step >= config.steps * 5 // 6
        generator = np.random.default_rng(stable_seed(seed, "autoencoder", step))
        pixels = crops(corpus.images, generator, 24 if whole else 64, 64 if whole else 32)
        with _half():
            latents = vae.encode(pixels).latent_dist
            decoded = vae.decode(latents.sample()).sample
        return reconstruction_terms(decoded.float(), pixels, latents.mean, latents.logvar)

    parameters = dict(vae.named_parameters())
    report = fit(parameters, loss, config, seed=seed, folder=folder, label="autoencoder")
    vae.register_to_config(scaling_factor=1.0 / _latent_scale(vae, corpus))
    return report


def _half() -> torch.autocast:
    """Work in bfloat16 where the processor multiplies it; elsewhere that is ten times slower."""
    own = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast("cpu", torch.bfloat16, enabled=own)


def reconstruction_terms(
    decoded: Float[Tensor, "batch 3 h w"],
    pixels: Float[Tensor, "batch 3 h w"],
    mean: Tensor,
    logvar: Tensor,
) -> dict[str, Tensor]:
    """L1 on pixels and on their finite differences, and a slight KL to a standard normal."""
    pixel = F.l1_loss(decoded, pixels)
    edge = F.l1_loss(decoded.diff(dim=-1), pixels.diff(dim=-1))
    edge = edge + F.l1_loss(decoded.diff(dim=-2), pixels.diff(dim=-2))
    mean, logvar = mean.float(), logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    total = pixel + _EDGE_WEIGHT * edge + _KL_WEIGHT * kl
    return {"total": total, "pixel": pixel, "edge": edge, "kl": kl}


def crops(
    images: NDArray[np.uint8], generator: np.random.Generator, count: int, size: int
) -> Float[Tensor, "count 3 size size"]:
    """Draw ``count`` random square crops, scaled to [-1, 1]."""
    side = images.shape[1]
    rows = generator.integers(0, len(images), count)
    tops = generator.integers(0, side - size + 1, (count, 2))
    picked = [images[i, y : y + size, x : x + size] for i, (y, x) in zip(rows, tops, strict=True)]
    return to_signed(np.stack(picked))


def to_signed(images: NDArray[np.uint8]) -> Float[Tensor, "n 3 h w"]:
    """Turn uint8 images (n, h, w, 3) into floats in [-1, 1], channels first."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def encode_corpus(vae: Any, images: NDArray[np.uint8]) -> Float[Tensor, "n c 8 8"]:
    """Return the scaled mean latents of every image."""
    vae.eval()
    parts = []
    for start in range(0, len(images), 128):
        with _half():
            mean = vae.encode(to_signed(images[start : start + 128])).latent_dist.mean
        parts.append(mean.float() * vae.config.scaling_factor)
    return torch.cat(parts).contiguous()


@torch.inference_mode()
def _latent_scale(vae: Any, corpus: Corpus) -> float:
    """Standard deviation of the latents over 1,024 images, as Rombach et al. (2022) set it."""
    vae.eval()
    return float(vae.encode(to_signed(corpus.images[:1024])).latent_dist.mean.std())
