"""CLIP and Long-CLIP, which is a CLIP with more text positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, autograd, ops
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase
from transformers.activations import QuickGELUActivation

from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.tokenizer import load_tokenizer
from gmail_align.errors import ModelError

_ARGMAX_POOLING: Final = 2
"""The ``eos_token_id`` of old configurations, at which transformers pools at the largest id."""
_SLOPE: Final = 1.702
KEPT: Final = 20
"""Text positions that stretching keeps: CLIP is hardly trained beyond them (Long-CLIP Sec. 3.1)."""


class ClipBackbone(Backbone):
    """A ``CLIPModel``: pooled at the class token, with a projection behind each tower."""

    name = "CLIP"
    model_class = CLIPModel
    projection = "visual_projection.weight"
    last_norm = "vision_model.post_layernorm"
    formats = Backbone.formats | {"open_clip", "llava", "sentence-transformers"}

    @property
    def end_of_text(self) -> int:
        """The token at which the text tower pools."""
        text = self.text_config
        end = text.eos_token_id
        return int(text.vocab_size - 1 if end == _ARGMAX_POOLING else end)

    def lean_trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return :meth:`trunk` up to rounding; the last layer computes its class token only."""
        return _class_token_and_patches(self.module.vision_model, pixels)[0]

    def trunk_and_patches(
        self, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b tokens width"]]:
        """Return :meth:`lean_trunk` and the patch tokens that LLaVA reads."""
        return _class_token_and_patches(self.module.vision_model, pixels)

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b tokens width"]:
        """Return the patch tokens that LLaVA reads, without running the last layer."""
        return _before_last(self.module.vision_model, pixels)[:, 1:]

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            ModelError: it is missing or damaged, or the text tower would not pool at its
                end-of-text token.
        """
        text = self.text_config
        tokenizer, pooled = load_tokenizer(folder, text.vocab_size), text.eos_token_id
        end = tokenizer.eos_token_id
        if pooled == _ARGMAX_POOLING and end != len(tokenizer) - 1:
            raise ModelError(
                f"{folder}: the text configuration has eos_token_id 2, which pools at the largest "
                f"id, but the tokenizer ends texts with {end} of {len(tokenizer)}: correct "
                "eos_token_id in config.json"
            )
        if pooled not in (_ARGMAX_POOLING, end):
            raise ModelError(
                f"{folder}: the text tower pools at token {pooled}, but the tokenizer ends texts "
                f"with {end}: correct eos_token_id in config.json"
            )
        return tokenizer

    def stretch(self, length: int) -> Backbone:
        """Return the model with its text positions stretched to ``length``; all else is equal.

        Raises:
            ModelError: the table of positions cannot be stretched to that length.
        """
        name = "text_model.embeddings.position_embedding.weight"
        state = dict(self.module.state_dict())
        state[name] = stretch_positions(state[name], length)
        config = CLIPConfig.from_dict(self.module.config.to_dict())
        config.text_config.max_position_embeddings = length
        longer = CLIPModel(config)
        longer.load_state_dict(state)
        return type(self)(longer.to(self.module.dtype).eval())

    def probe_inputs(self) -> dict[str, Tensor]:
        """Return fixed noise, whose texts end where the text tower pools."""
        inputs = super().probe_inputs()
        ids = inputs["input_ids"]
        ids[ids == self.text_config.vocab_size - 1] = self.end_of_text
        return inputs


def stretch_positions(
    table: Float[Tensor, "old width"], length: int, kept: int = KEPT
) -> Float[Tensor, "new width"]:
    """Stretch a position table: the first rows are kept, the others interpolated.

    This is Long-CLIP's rule (Zhang et al. 2024, ECCV, Sec. 3.1). Row ``kept + j`` is read at
    ``kept + j / s`` of the old table, linearly, where ``s`` is ``(length - kept) / (old - kept)``;
    behind its last row, the slope of the last two continues.

    Args:
        table: The old table.
        length: Rows of the new one.
        kept: Rows that stay as they are.

    Raises:
        ModelError: the new table would be shorter, or fewer than two rows could be interpolated.
    """
    old = len(table)
    if length < old or old < kept + 2:
        raise ModelError(
            f"a table of {old} text positions cannot be stretched to {length} with {kept} kept: "
            "only longer tables can be made, of more than the kept rows"
        )
    steps = torch.arange(length - kept, dtype=torch.float64)
    places = kept + steps * ((old - kept) / (length - kept))
    left = places.floor().long().clamp(max=old - 2)
    share = (places - left)[:, None]
    wide = table.double()
    rows = (1 - share) * wide[left] + share * wide[left + 1]
    return torch.cat([table[:kept], rows.to(table.dtype)])


def _class_token_and_patches(
    vision: Any, pixels: Float[Tensor, "b 3 h w"]
) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b tokens width"]]:
    """Return ``pooler_output`` and the patch tokens of ``hidden_states[-2]``, from one pass.

    CLIP reads nothing but the class token of the last layer, so the other tokens' queries,
    attention outputs and feed-forward passes there are left out: a fifth of a 4-layer tower, a
    fifteenth of ViT-B. The modules are those of ``vision`` itself, so adapters inside take part.
    """
    hidden, last = _before_last(vision, pixels), vision.encoder.layers[-1]
    token = hidden[:, :1] + _attend_first(last.self_attn, last.layer_norm1(hidden))
    token = token + _mlp(last.mlp, last.layer_norm2(token))
    pooled: Tensor = vision.post_layernorm(token[:, 0])
    return pooled, hidden[:, 1:]


def _before_last(vision: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t width"]:
    """Return the tokens that go into the last layer."""
    hidden: Tensor = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers[:-1]:
        hidden = hidden + layer.self_attn(layer.layer_norm1(hidden), attention_mask=None)[0]
        hidden = hidden + _mlp(layer.mlp, layer.layer_norm2(hidden))
    return hidden


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


def quick_gelu(inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``x sigmoid(1.702 x)`` (Hendrycks & Gimpel 2016) in half the passes over memory.

    It is ``silu(1.702 x) / 1.702``, whose slope is that of ``silu`` at ``1.702 x``, and torch has
    ``silu`` and its backward pass in one kernel each. The plain formula takes a quarter of a step.
    """
    apply: Any = _QuickGelu.apply
    outputs: Tensor = apply(inputs)
    return outputs


class _QuickGelu(autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: Tensor) -> Tensor:
        steep = inputs * _SLOPE
        context.save_for_backward(steep)
        return silu(steep).mul_(1 / _SLOPE)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (steep,) = context.saved_tensors
        slope: Tensor = ops.aten.silu_backward(gradients[0], steep)
        return slope
