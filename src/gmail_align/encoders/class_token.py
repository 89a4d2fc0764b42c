"""A vision tower's pooled output at less cost: the last layer only computes its class token.

CLIP reads nothing but the class token of the last layer, so the other tokens' queries, attention
outputs and feed-forward passes there are wasted: a fifth of a 4-layer tower, a fifteenth of ViT-B.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import CLIPVisionModel
from transformers.activations import QuickGELUActivation

from gmail_align.encoders.quick_gelu import quick_gelu


def class_token_output(
    vision: CLIPVisionModel, pixels: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b width"]:
    """Return ``vision(pixels).pooler_output``, equal to it up to rounding.

    It goes through the modules of ``vision`` themselves, so adapters inside them take part.
    """
    return class_token_and_patches(vision, pixels)[0]


def class_token_and_patches(
    vision: CLIPVisionModel, pixels: Float[Tensor, "b 3 h w"]
) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b tokens width"]]:
    """Return ``pooler_output`` and, from the same pass, the patch tokens that LLaVA reads.

    Those are ``hidden_states[-2]``, what goes into the last layer, without the class token.
    """
    tower: Any = vision
    *layers, last = tower.encoder.layers
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in layers:
        hidden = hidden + layer.self_attn(layer.layer_norm1(hidden), attention_mask=None)[0]
        hidden = hidden + _mlp(layer.mlp, layer.layer_norm2(hidden))
    token = hidden[:, :1] + _attend_first(last.self_attn, last.layer_norm1(hidden))
    token = token + _mlp(last.mlp, last.layer_norm2(token))
    pooled: Tensor = tower.post_layernorm(token[:, 0])
    return pooled, hidden[:, 1:]


def _mlp(mlp: Any, tokens: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
    """Return the feed-forward pass."""
    act = quick_gelu if isinstance(mlp.activation_fn, QuickGELUActivation) else mlp.activation_fn
    output: Tensor = mlp.fc2(act(mlp.fc1(tokens)))
    return output


def _attend_first(attention: Any, tokens: Float[Tensor, "b t width"]) -> Float[Tensor, "b 1 width"]:
    """Return self-attention's output for the first token."""
    batch, _, width = tokens.shape

    def heads(projected: Tensor) -> Tensor:
        return projected.view(batch, -1, attention.num_heads, attention.head_dim).transpose(1, 2)

    query, key = heads(attention.q_proj(tokens[:, :1])), heads(attention.k_proj(tokens))
    value = heads(attention.v_proj(tokens))
    mixed = scaled_dot_product_attention(query, key, value, scale=attention.scale)
    output: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(batch, 1, width))
    return output
