"""The second generator of the tabletop world: the first one, trained on by flow matching.

It has the autoencoder, the text encoder and the UNet of the diffusion model, and learns straight
paths from noise to latents (Lipman et al. 2023; Esser et al. 2024, Sec. 2), as FLUX does. It is not
shipped: ``tabletop train --only flow`` makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from gmail_align.runtime import stable_seed
from gmail_align.tabletop.training.autoencoder import encode_corpus
from gmail_align.tabletop.training.corpus import Corpus
from gmail_align.tabletop.training.diffusion import BATCH, DROP, assemble_pipeline, padded_ids
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import FitReport, fit


def flow_scheduler() -> DPMSolverMultistepScheduler:
    """Return the sampler of a flow-matching UNet: one that every diffusers knows by its name."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        final_sigmas_type="zero",
        steps_offset=1,  # StableDiffusionPipeline wants it, and flow sigmas do not read it
    )


def flow_of(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Return the point at ``sigma`` of the straight path to noise, and the path's velocity."""
    share = sigma[:, None, None, None]
    return (1 - share) * clean + share * noise, noise - clean


def train_flow(
    folder: Path, corpus: Corpus, config: OptimConfig, work: Path, *, seed: int = 0
) -> tuple[Any, FitReport]:
    """Train the UNet of a diffusion pipeline on by flow matching; text encoder and latents stay.

    Args:
        folder: The pipeline.
        corpus: Images and their captions.
        config: Optimisation.
        work: Where checkpoints go.
        seed: Seed of batches and noise.

    Returns:
        The new pipeline in fp32, and the curve.
    """
    loaded = StableDiffusionPipeline.from_pretrained(
        str(folder), local_files_only=True, safety_checker=None
    )
    start = loaded.to(dtype=torch.float32)
    unet = start.unet.requires_grad_(True)
    text_encoder = start.text_encoder.requires_grad_(False)
    latents = encode_corpus(start.vae, corpus.images)
    ids = padded_ids(start.tokenizer, [text for row in corpus.captions for text in row])
    nothing = padded_ids(start.tokenizer, [""])

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng(stable_seed(seed, "flow", step))
        rows = generator.integers(0, len(latents), BATCH)
        prompts = ids[rows * 5 + generator.integers(0, 5, BATCH)]
        dropped = torch.from_numpy(generator.random(BATCH) < DROP)
        prompts = torch.where(dropped[:, None], nothing, prompts)
        sigma = torch.sigmoid(torch.randn(BATCH))  # Esser et al. 2024: most of it in the middle
        noisy, velocity = flow_of(latents[rows], torch.randn(BATCH, *latents.shape[1:]), sigma)
        with torch.no_grad():
            context = text_encoder(input_ids=prompts)[0]
        predicted = unet(noisy, 1000 * sigma, context).sample
        return {"total": F.mse_loss(predicted, velocity)}

    work.mkdir(parents=True, exist_ok=True)
    parameters = dict(unet.named_parameters())
    report = fit(parameters, loss, config, seed=seed, folder=work, label="flow matching")
    pipeline = assemble_pipeline(start.vae, (unet, text_encoder), start.tokenizer)
    pipeline.register_modules(scheduler=flow_scheduler())
    return pipeline, report
