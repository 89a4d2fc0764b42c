"""The tabletop world's text-to-image model: latent diffusion in ``StableDiffusionPipeline`` format.

UNet and text encoder are trained together on frozen latents with v-prediction (Salimans & Ho
2022); the caption is dropped for one image in ten, so that classifier-free guidance works (Ho &
Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from gmail_align.extras import require
from gmail_align.runtime import stable_seed
from gmail_align.tabletop.training.autoencoder import LATENT_CHANNELS, encode_corpus
from gmail_align.tabletop.training.tokenizers import CLIP_LENGTH
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import FitReport, fit

BATCH = 64
_WIDTH = 128
DROP = 0.1


def build_unet() -> Any:
    """Return an untrained ``UNet2DConditionModel`` on 8 x 8 latents, about 6 M parameters."""
    diffusers = require("diffusers", "synthesis")
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(96, 144),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=16,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return the untrained text encoder of the diffusion model."""
    config = CLIPTextConfig(
        hidden_size=_WIDTH,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> Any:
    """Return Stable Diffusion's noise schedule, with v-prediction."""
    diffusers = require("diffusers", "synthesis")
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def phases(first: int, second: int) -> tuple[OptimConfig, OptimConfig]:
    """Return the recipe of the diffusion model: a long cosine, and another from a lower rate."""
    config = OptimConfig(
        steps=first, lr=1e-3, schedule="cosine", warmup=200, weight_decay=0.01, checkpoint_every=250
    )
    again = {"steps": second, "lr": 6e-4, "warmup": 100, "checkpoint_every": 100}
    return config, config.model_copy(update=again)


def train_diffusion(
    models: tuple[Any, CLIPTextModel],
    tokenizer: CLIPTokenizer,
    data: tuple[Float[Tensor, "n c 8 8"], list[list[str]]],
    configs: Sequence[OptimConfig],
    folder: Path,
    *,
    seed: int = 0,
) -> list[FitReport]:
    """Train (unet, text encoder) on (latents, captions) in phases, each with noise of its own.

    Every image has the same number of captions.
    """
    (unet, text_encoder), (latents, captions) = models, data
    scheduler = build_scheduler()
    each = len(captions[0])
    ids = padded_ids(tokenizer, [text for row in captions for text in row])
    nothing = padded_ids(tokenizer, [""])

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng(stable_seed(seed + len(reports), "diffusion", step))
        rows = generator.integers(0, len(latents), BATCH)
        prompts = ids[rows * each + generator.integers(0, each, BATCH)]
        dropped = torch.from_numpy(generator.random(BATCH) < DROP)
        prompts = torch.where(dropped[:, None], nothing, prompts)
        times = torch.from_numpy(generator.integers(0, 1000, BATCH))
        clean, noise = latents[rows], torch.randn(BATCH, *latents.shape[1:])
        noisy = scheduler.add_noise(clean, noise, times)
        context = text_encoder(input_ids=prompts)[0]
        predicted = unet(noisy, times, context).sample
        return {"total": F.mse_loss(predicted, scheduler.get_velocity(clean, noise, times))}

    parameters = {f"unet.{name}": p for name, p in unet.named_parameters()}
    parameters |= {f"text.{name}": p for name, p in text_encoder.named_parameters()}
    reports: list[FitReport] = []
    for number, config in enumerate(configs):
        home = folder / str(number)
        home.mkdir(parents=True, exist_ok=True)
        label = f"diffusion, phase {number + 1}"
        reports.append(fit(parameters, loss, config, seed=seed + number, folder=home, label=label))
    return reports


def train_on_images(
    folder: Path,
    images: NDArray[np.uint8],
    texts: Sequence[str],
    config: OptimConfig,
    work: Path,
    *,
    seed: int = 0,
) -> Any:
    """Train a pipeline of the tabletop world on with other images; the autoencoder stays.

    Args:
        folder: The pipeline.
        images: The images, (n, height, width, 3).
        texts: A caption of each.
        config: Optimisation.
        work: Where checkpoints go.
        seed: Seed of batches and noise.

    Returns:
        The new pipeline, in half precision.
    """
    diffusers = require("diffusers", "synthesis")
    start = diffusers.StableDiffusionPipeline.from_pretrained(
        str(folder), local_files_only=True, safety_checker=None
    ).to(dtype=torch.float32)
    models = start.unet.requires_grad_(True), start.text_encoder.requires_grad_(True)
    data = encode_corpus(start.vae, images), [[text] for text in texts]
    train_diffusion(models, start.tokenizer, data, [config], work, seed=seed)
    return assemble_pipeline(start.vae, models, start.tokenizer).to(dtype=torch.float16)


def assemble_pipeline(vae: Any, models: tuple[Any, CLIPTextModel], tokenizer: CLIPTokenizer) -> Any:
    """Put the parts together as a ``StableDiffusionPipeline``."""
    diffusers = require("diffusers", "synthesis")
    unet, text_encoder = models
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def padded_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return the token ids of texts, padded to the tokenizer's length."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(encoded["input_ids"])
