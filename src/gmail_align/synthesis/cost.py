"""What an image costs: floating-point operations counted on networks without weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gmail_align.errors import ConfigError
from gmail_align.synthesis.architectures import Architecture
from gmail_align.synthesis.config import SynthesisConfig

CARDS: Final[Mapping[str, float]] = {
    "h200": 788.0,
    "h100": 989.0,
    "a100": 312.0,
    "l40s": 362.0,
    "l4": 121.0,
    "v100": 125.0,
    "t4": 65.0,
}
"""GPU -> dense half-precision TFLOP/s: measured with matrix products for the H200, else the
data sheet's."""
USUAL_SHARE: Final = 0.34
"""Share of the limit that plain batched pipelines reach: the paper's own rates, and a public
example, are 1.26 to 1.30 images/s of Stable Diffusion v2 on an A100."""
_SD3_TOKENS: Final = 333
_FLUX_TOKENS: Final = 512
_SCHNELL_TOKENS: Final = 256
_BYTES_PER_PIXEL: Final = {"jpeg": 0.45, "png": 1.7}
"""Of a stored image, about; JPEG at quality 95."""


@dataclass(frozen=True)
class Cost:
    """What one image costs, in floating-point operations (two a multiply-add)."""

    denoiser: float
    """One pass of the denoiser."""
    passes: int
    """Passes an image: the steps, twice with classifier-free guidance."""
    decoder: float
    """Latents to pixels."""
    height: int
    width: int

    @property
    def total(self) -> float:
        """Return all of it; text encoders, which run once a caption, are below 1% and left out."""
        return self.denoiser * self.passes + self.decoder


@dataclass(frozen=True)
class Plan:
    """What a run will take, before anything runs."""

    images: int
    tflop_per_image: float
    card: str
    card_tflops: float
    share: float
    images_per_second_limit: float
    images_per_second: float
    gpu_days_limit: float
    gpu_days: float
    disk_gb: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def count_cost(architecture: Architecture, config: SynthesisConfig) -> Cost:
    """Count one image's floating-point operations on the meta device: nothing is computed."""
    denoiser, vae = architecture.denoiser.build(), architecture.vae.build()
    factor = 2 ** (
        len(vae.config.get("block_out_channels") or vae.config.decoder_block_out_channels) - 1
    )
    own = getattr(denoiser.config, "sample_size", None) or 512 // factor
    side = (own, own) if isinstance(own, int) else tuple(own)
    height, width = config.height or side[0] * factor, config.width or side[1] * factor
    latent = (height // factor, width // factor)
    arguments = _inputs(denoiser, vae, latent)
    z = torch.empty(1, vae.config.latent_channels, *latent, device="meta")
    guided = config.guidance_scale > 1 and architecture.denoiser.kind != "FluxTransformer2DModel"
    return Cost(
        denoiser=_count(lambda: denoiser(**arguments)),
        passes=config.steps * (2 if guided else 1),
        decoder=_count(lambda: vae.decode(z)),
        height=height,
        width=width,
    )


def make_plan(
    cost: Cost,
    config: SynthesisConfig,
    images: int,
    *,
    card: str = "h200",
    share: float = USUAL_SHARE,
) -> Plan:
    """Turn an image's cost into rates, days and disk.

    Args:
        cost: What one image costs.
        config: How it is stored.
        images: How many.
        card: One of :data:`CARDS`, or a number of TFLOP/s.
        share: Share of the card's limit that is expected.

    Raises:
        ConfigError: the card is unknown, or the share is none.
    """
    limit = CARDS.get(card.lower()) or _number(card)
    if not 0 < share <= 1:
        raise ConfigError(f"a share of {share} of the card's limit is none: use 0 to 1")
    fastest = limit * 1e12 / cost.total
    day = 86_400
    size = cost.height * cost.width * _BYTES_PER_PIXEL[config.image_format]
    return Plan(
        images=images,
        tflop_per_image=cost.total / 1e12,
        card=card,
        card_tflops=limit,
        share=share,
        images_per_second_limit=fastest,
        images_per_second=fastest * share,
        gpu_days_limit=images / fastest / day,
        gpu_days=images / (fastest * share) / day,
        disk_gb=images * (size + 2048) / 1e9,  # and a json member, with tar's padding
    )


def _number(card: str) -> float:
    try:
        value = float(card)
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value):
        raise ConfigError(
            f"the card {card!r} is not known (known: {', '.join(CARDS)}): give its half-precision "
            "TFLOP/s as a number"
        )
    return value


def _count(run: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def _inputs(denoiser: Any, vae: Any, latent: tuple[int, int]) -> dict[str, Any]:
    """Return arguments of one pass at batch 1, on the meta device."""
    kind, config = type(denoiser).__name__, denoiser.config

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")

    if kind == "UNet2DConditionModel":
        arguments: dict[str, Any] = {
            "sample": empty(1, config.in_channels, *latent),
            "timestep": empty(1),
            "encoder_hidden_states": empty(1, 77, config.cross_attention_dim),
        }
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim
            pooled -= 6 * config.addition_time_embed_dim
            arguments["added_cond_kwargs"] = {
                "text_embeds": empty(1, pooled),
                "time_ids": empty(1, 6),
            }
        return arguments
    tokens = _FLUX_TOKENS if getattr(config, "guidance_embeds", False) else _SCHNELL_TOKENS
    tokens = _SD3_TOKENS if kind == "SD3Transformer2DModel" else tokens
    text = {
        "encoder_hidden_states": empty(1, tokens, config.joint_attention_dim),
        "pooled_projections": empty(1, config.pooled_projection_dim),
        "timestep": empty(1),
    }
    if kind == "SD3Transformer2DModel":
        return {**text, "hidden_states": empty(1, config.in_channels, *latent)}
    patches = (latent[0] // 2) * (latent[1] // 2)
    return {
        **text,
        "hidden_states": empty(1, patches, config.in_channels),
        "img_ids": empty(patches, 3),
        "txt_ids": empty(tokens, 3),
        **({"guidance": empty(1)} if config.guidance_embeds else {}),
    }
