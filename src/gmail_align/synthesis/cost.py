"""What an image costs: floating-point operations, images a second, days and disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from gmail_align.errors import ConfigError
from gmail_align.synthesis.architectures import Architecture, Part
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.flops import Size, decoder_flops, denoiser_flops

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
_BLOCKS: Final = "block_out_channels"
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

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, in GFLOP."""
        return {
            "denoiser_gflop": self.denoiser / 1e9,
            "passes": self.passes,
            "decoder_gflop": self.decoder / 1e9,
            "height": self.height,
            "width": self.width,
        }


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

    def lines(self, cost: Cost) -> list[str]:
        """Lay the plan out for people, with what one image costs."""
        return [
            f"{self.images:,} images of {cost.height} x {cost.width} pixels",
            f"  operations    {self.tflop_per_image:.3g} TFLOP an image: {cost.passes} passes of "
            f"{cost.denoiser / 1e9:,.4g} GFLOP, decoder {cost.decoder / 1e9:,.4g} GFLOP",
            f"  {self.card:13} {self.card_tflops:g} TFLOP/s: at most "
            f"{self.images_per_second_limit:,.3g} images/s, {self.gpu_days_limit:,.3g} GPU-days",
            f"  expected      {self.share:.0%} of that: {self.images_per_second:,.3g} images/s, "
            f"{self.gpu_days:,.3g} GPU-days",
            f"  disk          about {self.disk_gb:,.3g} GB",
        ]


def count_cost(architecture: Architecture, config: SynthesisConfig) -> Cost:
    """Count one image's floating-point operations from the configurations of the networks.

    Raises:
        ConfigError: a network is of a class that cannot be counted.
    """
    denoiser, vae = architecture.denoiser, architecture.vae
    blocks = vae.config.get("decoder_block_out_channels" if "Tiny" in vae.kind else _BLOCKS)
    factor = 2 ** (len(blocks or (0,) * 4) - 1)
    own = denoiser.config.get("sample_size", 512 // factor)
    side = (own, own) if isinstance(own, int) else tuple(own)
    height, width = config.height or side[0] * factor, config.width or side[1] * factor
    size = Size(height // factor, width // factor, _tokens(denoiser))
    guided = config.guidance_scale > 1 and denoiser.kind != "FluxTransformer2DModel"
    return Cost(
        denoiser=denoiser_flops(denoiser.kind, denoiser.config, size),
        passes=config.steps * (2 if guided else 1),
        decoder=decoder_flops(vae.kind, vae.config, size),
        height=height,
        width=width,
    )


def _tokens(denoiser: Part) -> int:
    """Return the length of the prompt that a denoiser reads."""
    if denoiser.kind == "SD3Transformer2DModel":
        return _SD3_TOKENS
    if denoiser.kind == "FluxTransformer2DModel":
        return _FLUX_TOKENS if denoiser.config.get("guidance_embeds") else _SCHNELL_TOKENS
    return 77


def make_plan(
    cost: Cost,
    config: SynthesisConfig,
    images: int,
    *,
    card: str = "h200",
    share: float = USUAL_SHARE,
) -> Plan:
    """Turn an image's cost into rates, days and disk space.

    Args:
        cost: What one image costs.
        config: How it is stored.
        images: How many.
        card: One of :data:`CARDS`, or a number of TFLOP/s.
        share: Share of the card's limit that is expected.

    Raises:
        ConfigError: the card is not known, or the share is not above 0 and up to 1.
    """
    limit = card_tflops(card)
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}: give a share of the card's limit above 0 and up to 1")
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


def card_tflops(card: str) -> float:
    """Return the half-precision TFLOP/s of a card, or of a number.

    Raises:
        ConfigError: the card is not known.
    """
    if card.lower() in CARDS:
        return CARDS[card.lower()]
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
