"""The kinds of model an encoder is built on: CLIP (and Long-CLIP), SigLIP, and a plain ViT.

Each says the same few things of its model: what the trunk is, which projection stands behind it,
and how texts go in. The routes, the adapter and the heads know no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipModel,
    ViTModel,
)

from gmail_align.encoders.class_token import class_token_and_patches, class_token_output
from gmail_align.encoders.config import TextKind
from gmail_align.encoders.folder import no_bars, read_config
from gmail_align.encoders.probe import PROBE, compare, read_probe, said
from gmail_align.encoders.text import (
    load_siglip_tokenizer,
    load_tokenizer,
    tokenize,
    tokenize_full,
)
from gmail_align.errors import ModelError

INITIAL_SCALE = 1 / 0.07
"""CLIP's scale of cosines before training; stands in where a model has none of its own."""


class ClipBackbone:
    """A ``CLIPModel``; Long-CLIP is one with more text positions."""

    has_texts = True
    text_kind: TextKind = "softmax"

    def __init__(self, model: CLIPModel) -> None:
        self._model: Any = model

    @property
    def vision_config(self) -> Any:
        """Configuration of the vision tower."""
        return self._model.config.vision_config

    @property
    def head(self) -> nn.Parameter | None:
        """CLIP's visual projection."""
        return cast("nn.Parameter", self._model.visual_projection.weight)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """CLIP's own trained scale of cosines, exponentiated."""
        scale: Tensor = self._model.logit_scale.detach().exp()
        return scale

    @property
    def logit_bias(self) -> Float[Tensor, ""]:
        """0: a softmax needs no bias."""
        return torch.zeros_like(self.logit_scale)

    def trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return the class token behind the last layer norm."""
        pooled: Tensor = self._model.vision_model(pixel_values=pixels).pooler_output
        return pooled

    def lean_trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return :meth:`trunk`; the last layer computes its class token only."""
        return class_token_output(self._model.vision_model, pixels)

    def trunk_and_patches(
        self, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b tokens width"]]:
        """Return :meth:`lean_trunk` and the patch tokens that LLaVA reads."""
        return class_token_and_patches(self._model.vision_model, pixels)

    def image_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Return CLIP's image features."""
        features: Tensor = self._model.get_image_features(pixels).pooler_output
        return features

    def text_features(
        self, input_ids: Int[Tensor, "m t"], attention_mask: Int[Tensor, "m t"]
    ) -> Float[Tensor, "m dim"]:
        """Return CLIP's text features."""
        outputs = self._model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        features: Tensor = outputs.pooler_output
        return features

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Load the tokenizer; the text tower has to pool where it ends a text."""
        return load_tokenizer(folder, self._model.config)

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
        """Pad to the longest text: what stands behind its end is never seen."""
        return tokenize(tokenizer, texts, self._model.config.text_config.max_position_embeddings)


class SiglipBackbone:
    """A ``SiglipModel``: pooled by attention (MAP head), with no projection behind it."""

    has_texts = True
    text_kind: TextKind = "sigmoid"
    head: nn.Parameter | None = None

    def __init__(self, model: SiglipModel) -> None:
        self._model: Any = model

    @property
    def vision_config(self) -> Any:
        """Configuration of the vision tower."""
        return self._model.config.vision_config

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """SigLIP's own trained scale of cosines, exponentiated."""
        scale: Tensor = self._model.logit_scale.detach().exp().reshape(())
        return scale

    @property
    def logit_bias(self) -> Float[Tensor, ""]:
        """What the sigmoid loss adds to scaled cosines."""
        bias: Tensor = self._model.logit_bias.detach().reshape(())
        return bias

    def trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return the output of the pooling head."""
        pooled: Tensor = self._model.vision_model(pixel_values=pixels).pooler_output
        return pooled

    def lean_trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return :meth:`trunk`: the pooling head reads every token, so nothing can be left out."""
        return self.trunk(pixels)

    def trunk_and_patches(
        self, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b tokens width"]]:
        """Return the trunk and the tokens that go into the last layer."""
        outputs = self._model.vision_model(pixel_values=pixels, output_hidden_states=True)
        return outputs.pooler_output, outputs.hidden_states[-2]

    def image_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Return SigLIP's image features."""
        features: Tensor = self._model.get_image_features(pixels).pooler_output
        return features

    def text_features(
        self, input_ids: Int[Tensor, "m t"], attention_mask: Int[Tensor, "m t"]
    ) -> Float[Tensor, "m dim"]:
        """Return SigLIP's text features: it was trained on padded texts without a mask."""
        features: Tensor = self._model.get_text_features(input_ids=input_ids).pooler_output
        return features

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        return load_siglip_tokenizer(folder)

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
        """Pad to the full length: the text tower pools at the last position."""
        length = self._model.config.text_config.max_position_embeddings
        return tokenize_full(tokenizer, texts, length)


class VisionOnly(nn.Module):
    """A vision tower under the name that the adapter's targets begin with."""

    base_model_prefix = "vision_model"
    """Read by peft when it puts an adapter in."""

    def __init__(self, vision_model: ViTModel) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.config = vision_model.config


class VitBackbone:
    """A plain ``ViTModel`` (SynCLR): the class token behind the last norm, and no text tower."""

    has_texts = False
    text_kind: TextKind = "softmax"
    head: nn.Parameter | None = None

    def __init__(self, model: VisionOnly) -> None:
        self._model: Any = model.vision_model

    @property
    def vision_config(self) -> Any:
        """Configuration of the model."""
        return self._model.config

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """CLIP's initial scale: the model has none."""
        return torch.tensor(INITIAL_SCALE, device=self._model.device)

    @property
    def logit_bias(self) -> Float[Tensor, ""]:
        """0: the model has none."""
        return torch.zeros_like(self.logit_scale)

    def trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return the class token behind the last layer norm."""
        pooled: Tensor = self._model(pixel_values=pixels).last_hidden_state[:, 0]
        return pooled

    def lean_trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return :meth:`trunk`."""
        return self.trunk(pixels)

    def trunk_and_patches(
        self, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b tokens width"]]:
        """Return the trunk and the patch tokens that go into the last layer."""
        outputs = self._model(pixel_values=pixels, output_hidden_states=True)
        return outputs.last_hidden_state[:, 0], outputs.hidden_states[-2][:, 1:]

    def image_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Return :meth:`trunk`: nothing stands behind it."""
        return self.trunk(pixels)

    def text_features(
        self, input_ids: Int[Tensor, "m t"], attention_mask: Int[Tensor, "m t"]
    ) -> Float[Tensor, "m dim"]:
        """Refuse: there is no text tower."""
        raise _no_texts()

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Refuse: there is no text tower."""
        raise _no_texts()

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
        """Refuse: there is no text tower."""
        raise _no_texts()


Backbone = ClipBackbone | SiglipBackbone | VitBackbone


def backbone_of(model: nn.Module) -> Backbone:
    """Return the description of a model that :func:`load_model` loaded."""
    if isinstance(model, CLIPModel):
        return ClipBackbone(model)
    if isinstance(model, SiglipModel):
        return SiglipBackbone(model)
    assert isinstance(model, VisionOnly), f"{type(model).__name__} is no backbone"
    return VitBackbone(model)


def load_model(folder: Path) -> nn.Module:
    """Load a plain Hugging Face CLIP, SigLIP or ViT in fp32, frozen and in evaluation mode.

    Raises:
        ModelError: the folder holds another kind of model, or its weights are missing or damaged.
    """
    kinds: dict[object, tuple[str, type[PreTrainedModel], dict[str, Any]]] = {
        "clip": ("CLIP", CLIPModel, {}),
        "siglip": ("SigLIP", SiglipModel, {}),
        "vit": ("ViT", ViTModel, {"add_pooling_layer": False}),
    }
    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in kinds:
        raise ModelError(
            f"{folder} holds a model of type {kind!r}, but a CLIP model is needed (or SigLIP, ViT)"
        )
    name, made, settings = kinds[kind]
    model = _load(folder, name, made, settings)
    model.requires_grad_(False)
    if isinstance(model, SiglipModel) and not model.vision_model.use_head:
        raise ModelError(f"{folder} holds a SigLIP without its pooling head, which is needed")
    found = VisionOnly(model) if isinstance(model, ViTModel) else model
    if (folder / PROBE).exists():
        _check_probe(folder, backbone_of(found))
    return found


@torch.no_grad()
def _check_probe(folder: Path, backbone: Backbone) -> None:
    """Compare the features of the probe that is stored with the weights.

    Raises:
        ModelError: they differ.
    """
    tensors, made = read_probe(folder)
    what = f"{folder} (saved with {said(made)})"
    compare(backbone.image_features(tensors["pixels"]), tensors["image_features"], what)
    if "input_ids" in tensors:
        ids = tensors["input_ids"]
        found = backbone.text_features(ids, torch.ones_like(ids))
        compare(found, tensors["text_features"], what)


def _load(
    folder: Path, name: str, kind: type[PreTrainedModel], settings: dict[str, Any]
) -> PreTrainedModel:
    """Load a model of a known class; it is in evaluation mode."""
    try:
        with no_bars():
            loaded: Any = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder} holds no usable {name} weights: {line}") from error
    model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    if info["missing_keys"]:
        raise ModelError(
            f"{folder} holds no complete {name}: {len(info['missing_keys'])} weights are missing, "
            f"the first of them {min(info['missing_keys'])}"
        )
    return model


def _no_texts() -> ModelError:
    return ModelError(
        "this encoder has no text tower, so it cannot embed texts: for alignment, set "
        "weights.text_generated and weights.text_real to 0"
    )
