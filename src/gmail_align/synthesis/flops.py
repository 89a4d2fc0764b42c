"""Floating-point operations of the networks of diffusers, counted from their configurations.

Two operations a multiply-add. Matrix products, convolutions and attention are counted; norms,
activations and sums are not. Tests hold every formula against PyTorch's own counter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmail_align.errors import ConfigError

_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "cross_attention_dim": 1280,
}
_VAE = {
    "latent_channels": 4,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (64,),
    "use_post_quant_conv": True,
}
_SD3 = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
}
_FLUX = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
}
"""Defaults of diffusers, for what a configuration leaves out."""
_TIME = 256
"""Width of the sinusoidal embedding of time in SD3 and FLUX."""


@dataclass(frozen=True)
class Size:
    """What one pass runs on: latents of ``height`` x ``width``, and a prompt of ``tokens``."""

    height: int
    width: int
    tokens: int = 77

    @property
    def area(self) -> int:
        """Number of latent pixels."""
        return self.height * self.width

    def scaled(self, factor: float) -> Size:
        """Return the size at a higher or lower resolution."""
        return Size(int(self.height * factor), int(self.width * factor), self.tokens)


def denoiser_flops(kind: str, config: Mapping[str, Any], size: Size) -> float:
    """Count one pass of a denoiser for one image.

    Raises:
        ConfigError: the class is not known.
    """
    if kind == "UNet2DConditionModel":
        return _unet({**_UNET, **config}, size)
    if kind == "SD3Transformer2DModel":
        return _sd3({**_SD3, **config}, size)
    if kind == "FluxTransformer2DModel":
        return _flux({**_FLUX, **config}, size)
    raise ConfigError(f"the operations of a {kind} cannot be counted")


def decoder_flops(kind: str, config: Mapping[str, Any], size: Size) -> float:
    """Count the decoding of one image's latents.

    Raises:
        ConfigError: the class is not known.
    """
    if kind == "AutoencoderKL":
        return _vae_decoder({**_VAE, **config}, size)
    if kind == "AutoencoderTiny":
        return _tiny_decoder(config, size)
    raise ConfigError(f"the operations of a {kind} cannot be counted")


def linear(inputs: int, outputs: int, rows: int = 1) -> float:
    """Count a matrix product of ``rows`` rows."""
    return 2.0 * inputs * outputs * rows


def attention(rows: int, keys: int, width: int) -> float:
    """Count scaled dot products and the weighted sum, over all heads."""
    return 4.0 * rows * keys * width


def _conv(inputs: int, outputs: int, area: int, kernel: int = 3) -> float:
    return 2.0 * inputs * outputs * kernel * kernel * area


def _resnet(inputs: int, outputs: int, area: int, time: int | None = None) -> float:
    shortcut = _conv(inputs, outputs, area, 1) if inputs != outputs else 0.0
    embedding = 0.0 if time is None else linear(time, outputs)
    return _conv(inputs, outputs, area) + _conv(outputs, outputs, area) + shortcut + embedding


def _transformer(width: int, layers: int, context: int, size: Size) -> float:
    """Count a spatial transformer: projections, and layers of two attentions and a GEGLU."""
    rows, tokens = size.area, size.tokens
    own = 4 * linear(width, width, rows) + attention(rows, rows, width)
    cross = 2 * linear(width, width, rows) + 2 * linear(context, width, tokens)
    cross += attention(rows, tokens, width)
    forward = linear(width, 8 * width, rows) + linear(4 * width, width, rows)
    return 2 * linear(width, width, rows) + layers * (own + cross + forward)


def _each(value: int | Sequence[int], count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def _unet(config: Mapping[str, Any], size: Size) -> float:
    widths, levels = list(config["block_out_channels"]), len(config["block_out_channels"])
    blocks = _each(config["layers_per_block"], levels)
    depths = _each(config["transformer_layers_per_block"], levels)
    context, time = config["cross_attention_dim"], 4 * widths[0]
    contexts = _each(context, levels)
    total = linear(widths[0], time) + linear(time, time)
    if config.get("addition_embed_type") == "text_time":
        total += linear(config["projection_class_embeddings_input_dim"], time) + linear(time, time)
    total += _conv(config["in_channels"], widths[0], size.area)
    skips, before, at = [widths[0]], widths[0], size
    for level, kind in enumerate(config["down_block_types"]):
        for _ in range(blocks[level]):
            total += _resnet(before, widths[level], at.area, time)
            before = widths[level]
            if "CrossAttn" in kind:
                total += _transformer(before, depths[level], contexts[level], at)
            skips.append(before)
        if level < levels - 1:
            at = at.scaled(0.5)
            total += _conv(before, before, at.area)
            skips.append(before)
    total += 2 * _resnet(before, before, at.area, time)
    total += _transformer(before, depths[-1], contexts[-1], at)
    for step, kind in enumerate(config["up_block_types"]):
        level = levels - 1 - step
        for _ in range(blocks[level] + 1):
            total += _resnet(before + skips.pop(), widths[level], at.area, time)
            before = widths[level]
            if "CrossAttn" in kind:
                total += _transformer(before, depths[level], contexts[level], at)
        if level > 0:
            at = at.scaled(2.0)
            total += _conv(before, before, at.area)
    return total + _conv(before, config["out_channels"], at.area)


def _vae_decoder(config: Mapping[str, Any], size: Size) -> float:
    widths, latent = list(reversed(config["block_out_channels"])), config["latent_channels"]
    total = _conv(latent, latent, size.area, 1) if config["use_post_quant_conv"] else 0.0
    before, at = widths[0], size
    total += _conv(latent, before, at.area) + 2 * _resnet(before, before, at.area)
    if config.get("mid_block_add_attention", True):
        total += 4 * linear(before, before, at.area) + attention(at.area, at.area, before)
    for level, width in enumerate(widths):
        for _ in range(config["layers_per_block"] + 1):
            total += _resnet(before, width, at.area)
            before = width
        if level < len(widths) - 1:
            at = at.scaled(2.0)
            total += _conv(before, before, at.area)
    return total + _conv(before, config["out_channels"], at.area)


def _tiny_decoder(config: Mapping[str, Any], size: Size) -> float:
    widths = list(config.get("decoder_block_out_channels", (64,) * 4))
    blocks = list(config.get("num_decoder_blocks", (3, 3, 3, 1)))
    latent, at = config.get("latent_channels", 4), size
    total = _conv(latent, widths[0], at.area)
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        total += count * 3 * _conv(width, width, at.area)
        last = level == len(widths) - 1
        if not last:
            at = at.scaled(float(config.get("upsampling_scaling_factor", 2)))
        total += _conv(width, config.get("out_channels", 3) if last else width, at.area)
    return total


def _joint_block(width: int, rows: int, tokens: int, *, last: bool = False) -> float:
    """Count a block in which image and text attend to each other, each with weights of its own."""
    shared = attention(rows + tokens, rows + tokens, width)
    image = linear(width, 6 * width) + linear(width, 12 * width, rows)
    if last:
        text = linear(width, 2 * width) + linear(width, 3 * width, tokens)
    else:
        text = linear(width, 6 * width) + linear(width, 12 * width, tokens)
    return shared + image + text


def _embedding(inputs: int, width: int) -> float:
    return linear(inputs, width) + linear(width, width)


def _sd3(config: Mapping[str, Any], size: Size) -> float:
    width: int = config["attention_head_dim"] * config["num_attention_heads"]
    patch: int = config["patch_size"]
    layers: int = config["num_layers"]
    rows = size.area // patch**2
    total: float = linear(config["in_channels"] * patch**2, width, rows)
    total += _embedding(_TIME, width) + _embedding(config["pooled_projection_dim"], width)
    total += linear(config["joint_attention_dim"], config["caption_projection_dim"], size.tokens)
    total += (layers - 1) * _joint_block(width, rows, size.tokens)
    total += _joint_block(width, rows, size.tokens, last=True)
    return total + linear(width, 2 * width) + linear(width, patch**2 * config["out_channels"], rows)


def _flux(config: Mapping[str, Any], size: Size) -> float:
    width: int = config["attention_head_dim"] * config["num_attention_heads"]
    rows, tokens = (size.height // 2) * (size.width // 2), size.tokens
    total: float = linear(config["in_channels"], width, rows)
    total += linear(config["joint_attention_dim"], width, tokens)
    total += _embedding(_TIME, width) * (2 if config["guidance_embeds"] else 1)
    total += _embedding(config["pooled_projection_dim"], width)
    layers: int = config["num_layers"]
    singles: int = config["num_single_layers"]
    total += layers * _joint_block(width, rows, tokens)
    both = rows + tokens
    single = linear(width, 3 * width) + linear(width, 12 * width, both)
    total += singles * (single + attention(both, both, width))
    return total + linear(width, 2 * width) + linear(width, config["in_channels"], rows)
