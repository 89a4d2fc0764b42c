"""What open_clip's own description of a model may say: an allow-list.

A key that changes features is honoured or takes the one value that our models can hold. Every other
key or value is an error that names it, because a model built without it gives other features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gmail_align.config import Config
from gmail_align.convert.descriptions import honoured
from gmail_align.convert.openai_format import ClipOptions, Shape, TowerOptions
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.errors import ModelError, damage_explained

OPEN_CLIP_CONFIG = "open_clip_config.json"
_ARGMAX = 2
"""The ``eos_token_id`` that transformers takes for pooling at the largest id."""


class NormOptions(Config):
    """Arguments of the layer norms."""

    eps: float = Field(default=1e-5, gt=0)
    """Added to the variance."""


class _Tower(Config):
    """What both towers may say."""

    layers: int | None = None
    """Layers."""
    width: int | None = None
    """Channels."""
    mlp_ratio: float | None = None
    """Width of the feed-forward pass, in parts of the tower's."""
    norm_kwargs: NormOptions | None = None
    """Arguments of the layer norms."""
    final_ln_after_pool: bool = False
    """Any value: where one token is pooled, the order makes no difference."""
    output_tokens: bool = False
    """Any value: the pooled features stay the same."""
    act_kwargs: None = None
    ls_init_value: None = None
    block_type: Literal["default"] | None = None
    qk_norm: Literal[False] = False
    scaled_cosine_attn: Literal[False] = False
    scale_heads: Literal[False] = False
    scale_attn_inner: Literal[False] = False
    scale_attn: Literal[False] = False
    scale_fc: Literal[False] = False


class VisionConfig(_Tower):
    """``vision_cfg``: a ViT whose class token is pooled."""

    image_size: int | tuple[int, int] | None = None
    """Side of the images, in pixels."""
    patch_size: int | None = None
    """Side of the patches, in pixels."""
    head_width: int = Field(default=64, ge=1)
    """Channels of an attention head."""
    patch_dropout: float = 0.0
    """Any value: it is used in training alone."""
    attn_pooler_queries: int = 256
    """Any value: without attentional pooling it is not used."""
    attn_pooler_heads: int = 8
    """Any value: without attentional pooling it is not used."""
    pool_type: Literal["tok"] = "tok"
    attentional_pool: Literal[False] = False
    no_ln_pre: Literal[False] = False
    pos_embed_type: Literal["learnable"] = "learnable"
    timm_model_name: None = None
    timm_model_pretrained: bool = False
    timm_pool: str = "avg"
    timm_proj: str | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None


class TextConfig(_Tower):
    """``text_cfg``: a causal transformer that pools at the end of the text."""

    context_length: int | None = None
    """Text positions."""
    vocab_size: int | None = None
    """Token ids."""
    heads: int = Field(default=8, ge=1)
    """Attention heads; open_clip takes 8 where they are left out, whatever the width."""
    pool_type: Literal["argmax", "eos"] = "argmax"
    """Whether the largest id ends a text, or the token ``eos_id``."""
    eos_id: int = _ARGMAX
    """The token that ends a text, where ``pool_type`` is ``eos``."""
    pad_id: int = 0
    """Any value: causal attention never sees what follows the end of a text."""
    hf_tokenizer_name: str | None = None
    """Any value: the tokenizer is given."""
    tokenizer_kwargs: dict[Literal["clean"], Literal["whitespace"]] | None = None
    tokenizer_mode: None = None
    no_causal_mask: Literal[False] = False
    embed_cls: Literal[False] = False
    proj_bias: Literal[False] = False
    proj_type: Literal["linear"] = "linear"
    hf_model_name: None = None
    hf_model_pretrained: bool = True
    hf_proj_type: str | None = "mlp"
    hf_pooler_type: str = "mean_pooler"


class ModelConfig(Config):
    """``model_cfg``: two towers and their shared space."""

    embed_dim: int | None = None
    """Dimension of the shared space."""
    quick_gelu: bool = False
    """Whether the activation is OpenAI's approximation of GELU."""
    vision_cfg: VisionConfig = VisionConfig()
    """The vision tower."""
    text_cfg: TextConfig = TextConfig()
    """The text tower."""
    custom_text: bool = False
    """Any value: it changes the names of weights alone."""
    init_logit_scale: float | None = None
    """Any value: the weights hold the trained scale."""
    init_logit_bias: None = None
    multimodal_cfg: None = None


class PreprocessConfig(Config):
    """``preprocess_cfg``: how a photo becomes the model's input."""

    size: int | tuple[int, int] | None = None
    """Side of the images, in pixels."""
    mean: float | tuple[float, float, float] | None = None
    """Mean of each channel; CLIP's own when left out."""
    std: float | tuple[float, float, float] | None = None
    """Deviation of each channel; CLIP's own when left out."""
    interpolation: Literal["bicubic", "bilinear", "random"] | None = "bicubic"
    """The filter; ``random`` is bicubic outside of training."""
    resize_mode: Literal["shortest", "squash"] | None = "shortest"
    """Whether the shortest side is resized and the centre cropped, or the image squeezed."""
    mode: Literal["RGB"] = "RGB"
    fill_color: Any = 0
    """Any value: without padding it is not used."""


class OpenClipConfig(Config):
    """``open_clip_config.json``."""

    model_cfg: ModelConfig = ModelConfig()
    """The model."""
    preprocess_cfg: PreprocessConfig = PreprocessConfig()
    """The image transform."""

    @classmethod
    def from_folder(cls, folder: Path) -> OpenClipConfig | None:
        """Read the description in a folder; None where there is none.

        Raises:
            ModelError: it is damaged, or says something that cannot be honoured.
        """
        path = folder / OPEN_CLIP_CONFIG
        if not path.exists():
            return None
        with damage_explained(path, ModelError):
            described = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(described, dict):
                raise ValueError("it does not hold an object")
        return honoured(cls, described, path)

    def check_shape(self, shape: Shape, *, stretched: bool) -> None:
        """Compare the sizes that are described with those of the weights.

        Args:
            shape: Sizes of the weights.
            stretched: Whether the text positions were stretched, and so may differ.

        Raises:
            ModelError: they differ.
        """
        model = self.model_cfg
        vision, text = model.vision_cfg, model.text_cfg
        pairs: dict[str, tuple[Any, int]] = {
            "embed_dim": (model.embed_dim, shape.dim),
            "vision_cfg.layers": (vision.layers, shape.layers),
            "vision_cfg.width": (vision.width, shape.width),
            "vision_cfg.image_size": (vision.image_size, shape.image_size),
            "vision_cfg.patch_size": (vision.patch_size, shape.patch),
            "text_cfg.layers": (text.layers, shape.text_layers),
            "text_cfg.width": (text.width, shape.text_width),
            "text_cfg.vocab_size": (text.vocab_size, shape.vocabulary),
            "preprocess_cfg.size": (self.preprocess_cfg.size, shape.image_size),
        }
        if not stretched:
            pairs["text_cfg.context_length"] = (text.context_length, shape.positions)
        for key, (described, actual) in pairs.items():
            sides = set(described) if isinstance(described, tuple) else {described}
            if sides not in ({None}, {actual}):
                raise ModelError(
                    f"{OPEN_CLIP_CONFIG} says {key} = {described}, but the weights have {actual}"
                )

    def options(self, shape: Shape) -> ClipOptions:
        """Return what the weights alone do not tell.

        Raises:
            ModelError: texts end at a token at which transformers cannot pool.
        """
        model = self.model_cfg
        vision, text = model.vision_cfg, model.text_cfg
        if text.pool_type == "eos" and text.eos_id == _ARGMAX:
            raise ModelError(
                f"{OPEN_CLIP_CONFIG} says text_cfg.eos_id = 2, by which transformers pools at the "
                "largest id: such a model cannot be converted"
            )
        return ClipOptions(
            activation="quick_gelu" if model.quick_gelu else "gelu",
            vision=TowerOptions(shape.width // vision.head_width, _epsilon(vision)),
            text=TowerOptions(text.heads, _epsilon(text)),
            end_of_text=text.eos_id if text.pool_type == "eos" else None,
        )

    def preprocess(self, size: int) -> Preprocess:
        """Return the image transform of a model whose images have sides of ``size`` pixels."""
        described, plain = self.preprocess_cfg, Preprocess()
        square = described.resize_mode == "squash"
        return Preprocess(
            size,
            "square" if square else "shortest",
            not square,
            _channels(described.mean, plain.mean),
            _channels(described.std, plain.std),
            "bilinear" if described.interpolation == "bilinear" else "bicubic",
        )


def _epsilon(tower: _Tower) -> float:
    return (tower.norm_kwargs or NormOptions()).eps


def _channels(
    value: float | tuple[float, float, float] | None, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    if value is None:
        return default
    return value if isinstance(value, tuple) else (value, value, value)
