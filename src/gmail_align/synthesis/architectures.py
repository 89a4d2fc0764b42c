"""Shapes of well-known generators, to count what they cost and to time them without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gmail_align.config import load_json
from gmail_align.errors import ModelError
from gmail_align.extras import require
from gmail_align.synthesis.weights import COPY_AGAIN, read_index

_DENOISERS: Final = {"unet", "transformer"}
_CLASSES: Final = {
    *("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"),
    *("AutoencoderKL", "AutoencoderTiny"),
}


@dataclass(frozen=True)
class Part:
    """A network of diffusers: its class and its configuration."""

    kind: str
    config: Mapping[str, Any]

    def build(self, device: str = "meta") -> Any:
        """Make the network with weights that are random, or none on the meta device."""
        import torch

        diffusers: Any = require("diffusers", "synthesis")
        with torch.device(device):
            return getattr(diffusers, self.kind).from_config(dict(self.config)).eval()


@dataclass(frozen=True)
class Architecture:
    """What of a generator costs time: the denoiser, and the decoder of its latents."""

    denoiser: Part
    vae: Part


def _vae(**changes: Any) -> Part:
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    return Part("AutoencoderKL", {**config, **changes})


_SD2: Final = Architecture(
    Part(
        "UNet2DConditionModel",
        {
            "sample_size": 64,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    ),
    _vae(),
)
_FLUX: Final = Architecture(
    Part("FluxTransformer2DModel", {"guidance_embeds": True}),
    _vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False),
)
ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "sd2": _SD2,
    "sd_turbo": _SD2,
    "sdxl": Architecture(
        Part(
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": (
                    "DownBlock2D",
                    "CrossAttnDownBlock2D",
                    "CrossAttnDownBlock2D",
                ),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "use_linear_projection": True,
            },
        ),
        _vae(),
    ),
    "sd3": Architecture(
        Part(
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 192,
            },
        ),
        _vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False),
    ),
    "flux": _FLUX,
    "flux_schnell": Architecture(
        Part("FluxTransformer2DModel", {"guidance_embeds": False}), _FLUX.vae
    ),
}
"""Preset -> the architecture of the weights that it is for."""


def read_architecture(folder: Path) -> Architecture:
    """Read the configurations of a pipeline's folder; no weights are read.

    Raises:
        ModelError: the folder is not a pipeline, or its networks are of unknown classes.
    """
    index = read_index(folder)
    parts: dict[str, Part] = {}
    for name in (*_DENOISERS, "vae"):
        entry = index.get(name)
        if not isinstance(entry, list) or not any(entry):
            continue
        if entry[1] not in _CLASSES:
            raise ModelError(f"{folder} has a {name} of class {entry[1]}, which cannot be counted")
        config = load_json(folder / name / "config.json", ModelError, COPY_AGAIN)
        parts["vae" if name == "vae" else "denoiser"] = Part(entry[1], config)
    if set(parts) != {"vae", "denoiser"}:
        raise ModelError(f"{folder} lacks a denoiser or a VAE: its cost cannot be counted")
    return Architecture(**parts)
