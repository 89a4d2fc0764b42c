"""A ViT in timm's naming (SynCLR's checkpoints) as Hugging Face's plain ``ViTModel``."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d
from transformers import ViTConfig, ViTModel

from gmail_align.convert.openai_format import BareTower, TowerOptions, load_strictly
from gmail_align.errors import ModelError

State = Mapping[str, Tensor]
_EPSILON = 1e-6
_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PARTS = ("norm1", "attn.qkv.", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_PATTERN = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def is_timm(state: State) -> bool:
    """Whether the names are those of a timm ViT, alone or under ``visual.``."""
    return any(name.removeprefix("visual.") == "patch_embed.proj.weight" for name in state)


def vision_state(state: State) -> dict[str, Tensor]:
    """Return the ViT's own tensors in fp32, without their prefix and without a classifier.

    Everything beside ``visual.`` (projection heads of the pre-training) is left behind.
    """
    inside = {
        name.removeprefix("visual."): tensor.float()
        for name, tensor in state.items()
        if name.startswith("visual.")
    }
    renamed = inside or {name: tensor.float() for name, tensor in state.items()}
    return {name: tensor for name, tensor in renamed.items() if not name.startswith("head.")}


def build_vit(state: State, heads: int) -> ViTModel:
    """Build Hugging Face's model of what :func:`vision_state` returned.

    Args:
        state: The weights.
        heads: Attention heads, which the weights do not tell.

    Raises:
        ModelError: a tensor is missing, unknown or of another shape, or the heads do not divide
            the width.
    """
    try:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        cells = state["pos_embed"].shape[1] - 1
        feed_forward = len(state["blocks.0.mlp.fc1.weight"])
    except KeyError as error:
        raise ModelError(f"the weights lack {error}: this is not a ViT of timm") from error
    if width % heads:
        raise ModelError(f"{heads} attention heads do not divide a width of {width}")
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=_depth(state),
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        image_size=patch * round(cells**0.5),
        patch_size=patch,
        layer_norm_eps=_EPSILON,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
    )
    model = ViTModel(config, add_pooling_layer=False)
    load_strictly(model, to_hf(state))
    return model.eval()


def to_hf(state: State) -> dict[str, Tensor]:
    """Rename to Hugging Face's naming; unknown names stay as they are."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _PATTERN.fullmatch(name)
        if block is None:
            renamed[_TOP.get(name, name)] = tensor
            continue
        layer, part, kind = block.groups()
        if part == "attn.qkv":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"layers.{layer}.attention.{letter}_proj.{kind}"] = third.clone()
        else:
            renamed[f"layers.{layer}.{_BLOCK.get(part, part)}.{kind}"] = tensor
    return renamed


@torch.no_grad()
def encode_image(
    state: State, pixels: Float[Tensor, "b 3 h w"], heads: int
) -> Float[Tensor, "b width"]:
    """Run the ViT on bare tensors in timm's naming: the class token behind the last norm."""
    kernel = state["patch_embed.proj.weight"]
    patches = conv2d(pixels, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[-1])
    tokens = patches.flatten(2).transpose(1, 2)
    first = state["cls_token"].expand(len(tokens), -1, -1)
    hidden = torch.cat([first, tokens], dim=1) + state["pos_embed"]
    tower = BareTower(state, TowerOptions(heads, _EPSILON), blocks="{tower}.{layer}", parts=_PARTS)
    return tower.norm("norm", tower.run("blocks", hidden, _depth(state))[:, 0])


def _depth(state: State) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})
