"""What the encoder, training and exports ask of a base model, whatever its class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmail_align.encoders.config import TextKind
from gmail_align.encoders.folder import CONFIG
from gmail_align.encoders.probe import (
    PROBE,
    compare,
    named_versions,
    probe_ids,
    probe_pixels,
    read_probe,
)
from gmail_align.encoders.stored import load_whole
from gmail_align.encoders.tokenizer import tell_cut, tokenize
from gmail_align.errors import ModelError, damage_explained

SIZES = {
    "12x192": "Ti",
    "12x384": "S",
    "12x768": "B",
    "24x1024": "L",
    "32x1280": "H",
    "27x1152": "So400m",
    "40x1408": "g",
    "48x1664": "G",
}
"""Layers and width of a vision tower -> the letter of its size."""


class Backbone:
    """A frozen base model. A subclass says what is special about one class of models.

    The methods here are right for models with two towers, ``vision_model`` and ``text_model``.
    """

    name: ClassVar[str]
    """What people call such models."""
    model_class: ClassVar[type[PreTrainedModel]]
    """Class of transformers that loads a folder."""
    load_options: ClassVar[dict[str, Any]] = {}
    """What the class is told when it loads a folder."""
    has_texts: ClassVar[bool] = True
    """Whether there is a text tower."""
    text_kind: ClassVar[TextKind] = "softmax"
    """The loss of images and texts that such models are trained by."""
    full_length: ClassVar[bool] = False
    """Whether every text is padded to the text tower's full length, and no mask is used."""
    projection: ClassVar[str | None] = None
    """Name of the weight behind the vision tower into which a head can be baked."""
    last_norm: ClassVar[str | None] = None
    """Name of the affine norm of what :attr:`projection` reads, and of nothing else."""
    formats: ClassVar[frozenset[str]] = frozenset({"hf", "peft", "onnx"})
    """Formats of exports that have a place for such models."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        """The model, its vision tower under the name ``vision_model``."""

    @property
    def title(self) -> str:
        """The model's name and size, as people say it: ``CLIP B/16``; layers x width if unusual."""
        vision = self.vision_config
        own = f"{vision.num_hidden_layers}x{vision.hidden_size}"
        return f"{self.name} {SIZES.get(own, own)}/{vision.patch_size}"

    @classmethod
    def of(cls, plain: nn.Module) -> Backbone:
        """Describe a model that transformers loaded."""
        return cls(plain)

    @classmethod
    def load(cls, folder: Path) -> Backbone:
        """Load a folder and, where it has a probe, compare the features with it.

        Raises:
            ModelError: the weights are missing or damaged, or give other features.
        """
        with damage_explained(folder / CONFIG, ModelError, "get the model again"):
            config = cls.model_class.config_class.from_pretrained(folder, local_files_only=True)
            for own in (config, *(getattr(config, name) for name in config.sub_configs)):
                own.return_dict = True  # how outputs are wrapped, and no part of the model
        model = load_whole(cls.model_class, folder, config=config, **cls.load_options)
        backbone = cls.of(model.requires_grad_(False))
        if cls.has_texts:
            with torch.no_grad(), damage_explained(folder / CONFIG, ModelError):
                ids = backbone.probe_inputs()["input_ids"][:, -2:]
                backbone.text_features(ids, torch.ones_like(ids))
        backbone.check(folder)
        return backbone

    def check(self, folder: Path) -> None:
        """Compare the features of the probe that is stored with the weights.

        Raises:
            ModelError: they differ.
        """
        if not (folder / PROBE).exists():
            return
        tensors, made_with = read_probe(folder)
        what = f"{folder} (saved with {named_versions(made_with)})"
        with torch.no_grad():
            compare(self.image_features(tensors["pixels"]), tensors["image_features"], what)
            if "input_ids" in tensors:
                ids = tensors["input_ids"]
                texts = self.text_features(ids, torch.ones_like(ids))
                compare(texts, tensors["text_features"], what)

    def state(self) -> dict[str, Tensor]:
        """Return the frozen model's weights by name, without those of adapters inside it."""
        return {
            name.replace(".base_layer.", "."): tensor.detach()
            for name, tensor in self.module.state_dict().items()
            if ".lora_" not in name
        }

    @property
    def plain(self) -> PreTrainedModel:
        """The model as transformers knows it."""
        return cast("PreTrainedModel", self.module)

    @property
    def vision_config(self) -> Any:
        """Configuration of the vision tower."""
        return self.module.config.vision_config

    @property
    def text_config(self) -> Any:
        """Configuration of the text tower."""
        return self.module.config.text_config

    @property
    def text_length(self) -> int:
        """Positions of the text tower."""
        return int(self.text_config.max_position_embeddings)

    @property
    def head(self) -> nn.Parameter | None:
        """The model's own projection behind the vision tower; None where it has none."""
        return None if self.projection is None else self.module.get_parameter(self.projection)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The model's own trained scale of cosines, exponentiated."""
        scale: Tensor = self.module.logit_scale.detach().exp().reshape(())
        return scale

    @property
    def logit_bias(self) -> Float[Tensor, ""]:
        """What a sigmoid loss adds to scaled cosines; 0 for a softmax."""
        return torch.zeros_like(self.logit_scale)

    def trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return the vision tower's pooled output."""
        pooled: Tensor = self.module.vision_model(pixel_values=pixels).pooler_output
        return pooled

    def lean_trunk(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Return :meth:`trunk` up to rounding, at less cost where that is possible."""
        return self.trunk(pixels)

    def trunk_and_patches(
        self, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b tokens width"]]:
        """Return :meth:`lean_trunk` and the patch tokens that go into the last layer."""
        outputs = self.module.vision_model(pixel_values=pixels, output_hidden_states=True)
        return outputs.pooler_output, outputs.hidden_states[-2]

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b tokens width"]:
        """Return the patch tokens that go into the last layer."""
        return self.trunk_and_patches(pixels)[1]

    def image_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Return the model's own image features."""
        features: Tensor = self.module.get_image_features(pixels).pooler_output
        return features

    def text_features(
        self, input_ids: Int[Tensor, "m t"], attention_mask: Int[Tensor, "m t"]
    ) -> Float[Tensor, "m dim"]:
        """Return the model's own text features."""
        mask = {} if self.full_length else {"attention_mask": attention_mask}
        outputs = self.module.get_text_features(input_ids=input_ids, **mask)
        features: Tensor = outputs.pooler_output
        return features

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """Load the tokenizer of a folder.

        Raises:
            ModelError: it is missing or damaged, does not fit the text tower, or there is no text
                tower.
        """
        raise ModelError(
            "this encoder has no text tower, so it cannot embed texts: for alignment, set "
            "weights.text_generated and weights.text_real to 0"
        )

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
        """Return token ids and attention mask, padded and cut as the text tower needs them."""
        return tokenize(tokenizer, texts, self.text_length, full_length=self.full_length)

    def tell_cut(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
        """Say how many texts :meth:`tokenize` cuts, and return that."""
        return tell_cut(tokenizer, texts, self.text_length)

    def stretch(self, length: int) -> Backbone:
        """Return the model with its text positions stretched to ``length``.

        Raises:
            ModelError: such models cannot be stretched, or not to that length.
        """
        raise ModelError(f"only the text positions of a CLIP can be stretched, not a {self.name}'s")

    def probe_inputs(self) -> dict[str, Tensor]:
        """Return fixed noise: ``pixels`` and, with a text tower, ``input_ids``."""
        vision = self.vision_config
        inputs = {"pixels": probe_pixels(vision.image_size, vision.num_channels)}
        if self.has_texts:
            inputs["input_ids"] = probe_ids(self.text_config.vocab_size, self.text_length)
        return inputs

    def exported(self, head: Float[Tensor, "dim width"] | None) -> PreTrainedModel:
        """Return the model that an export as ``hf`` writes, with ``head`` behind the trunk.

        Raises:
            ModelError: the model has no place for the head.
        """
        return self.plain

    @classmethod
    def exported_features(
        cls, exported: Any, pixels: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b dim"]:
        """Return the image features of what :meth:`exported` made."""
        features: Tensor = exported.get_image_features(pixels).pooler_output
        return features

    def plain_name(self, name: str) -> str:
        """Return the name in :attr:`plain` of a module or weight of :attr:`module`."""
        return name
