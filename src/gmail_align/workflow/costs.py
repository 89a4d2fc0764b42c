"""What transformers cost, from their configurations alone: operations and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gmail_align.config import load_json
from gmail_align.errors import ModelError
from gmail_align.vlm.costs import LlavaShape
from gmail_align.workflow.work import Model

_VISION: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT: Final = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
"""Defaults of transformers' CLIP, for what a configuration leaves out."""
_LARGE: Final[Mapping[str, Any]] = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
    "text_config": {"hidden_size": 768, "intermediate_size": 3072},
}
_WIDE_TEXT: Final = {"hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 64}
KNOWN_ENCODERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "openai/clip-vit-base-patch32": {},
    "openai/clip-vit-base-patch16": {"vision_config": {"patch_size": 16}},
    "openai/clip-vit-large-patch14": _LARGE,
    "openai/clip-vit-large-patch14-336": {
        **_LARGE,
        "vision_config": {**_LARGE["vision_config"], "image_size": 336},
    },
    "google/siglip-base-patch16-224": {
        "projection_dim": 768,
        "vision_config": {"patch_size": 16},
        "text_config": {**_WIDE_TEXT, "vocab_size": 32000},
    },
}
"""Hub id -> configuration of encoders that a plan knows without their files."""
_VICUNA: Final = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000}
_LLAMA3: Final = {
    **_VICUNA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
KNOWN_LANGUAGE_MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "vocab_size": 50257},
    "openai-community/gpt2": {"n_embd": 768, "n_layer": 12, "vocab_size": 50257},
    "lmsys/vicuna-7b-v1.5": _VICUNA,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3,
    "models/llava15-first": _VICUNA,
    "models/llava-llama3-first": _LLAMA3,
}
"""Hub ids, and the folders of first stages as the runbooks of shipped recipes name them."""
_FLOAT: Final = 4
"""Bytes of a number: towers are trained in float32 unless told otherwise."""


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers that reads ``tokens`` tokens."""

    width: int
    mlp: int
    layers: int
    tokens: int

    @property
    def parameters(self) -> int:
        """Weights of its layers."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp)

    @property
    def flops(self) -> float:
        """Operations of one pass: two a multiply-add."""
        attention = 4.0 * self.layers * self.tokens**2 * self.width
        return 2.0 * self.parameters * self.tokens + attention

    def kept(self, batch: int, per_width: float, per_mlp: float) -> float:
        """Return the bytes that a forward pass keeps for the backward pass."""
        numbers = per_width * self.width + per_mlp * self.mlp
        return _FLOAT * batch * self.tokens * self.layers * numbers


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of a CLIP-like encoder."""

    vision: Tower
    text: Tower | None
    image_size: int
    patch_size: int
    projection: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Weights of both towers, embeddings included."""
        patch = 3 * self.patch_size**2 * self.vision.width
        total = self.vision.parameters + patch + self.vision.width * self.projection
        if self.text is not None:
            total += self.text.parameters + self.text.width * (self.vocabulary + self.projection)
        return total

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return int(self.image_size // self.patch_size) ** 2

    @property
    def image_flops(self) -> float:
        """Operations that embed one image."""
        patch = 2.0 * 3 * self.patch_size**2 * self.vision.width * self.patches
        return self.vision.flops + patch + 2.0 * self.vision.width * self.projection

    @property
    def text_flops(self) -> float:
        """Operations that embed one caption."""
        return 0.0 if self.text is None else self.text.flops

    def memory(self, batch: int) -> float:
        """Return the bytes that embedding a batch takes: weights, and the widest layer."""
        layer = self.vision.tokens * (4 * self.vision.width + self.vision.mlp)
        return _FLOAT * (self.parameters + batch * layer)

    def training_memory(self, batch: int, *, full: bool = False) -> float:
        """Return the bytes that a training step takes: weights, their updates and what is kept.

        Weights under an adapter have neither gradient nor moments. Norms keep their input and its
        normalised form, attention its queries, keys, values and output, the activation its input.
        """
        weights = self.parameters * _FLOAT * (4 if full else 1)
        return weights + self.vision.kept(batch, *KEPT_BY_VISION)


KEPT_BY_VISION: Final = (7.0, 2.0)
"""Numbers that a layer of a CLIP keeps a token, per width and per width of the MLP."""
KEPT_BY_LANGUAGE: Final = (9.0, 2.5)
"""The same of a GPT-2 that is trained whole."""


@dataclass(frozen=True)
class LanguageShape:
    """The sizes of a language model."""

    width: int
    layers: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Weights, embeddings included."""
        return 12 * self.layers * self.width**2 + self.vocabulary * self.width

    def flops(self, tokens: int) -> float:
        """Return the operations of one pass over ``tokens`` tokens."""
        return self._tower(tokens).flops + 2.0 * self.vocabulary * self.width * tokens

    def training_memory(self, batch: int, tokens: int) -> float:
        """Return the bytes that a training step takes: weights, updates and what is kept."""
        logits = 2.0 * _FLOAT * batch * tokens * self.vocabulary
        kept = self._tower(tokens).kept(batch, *KEPT_BY_LANGUAGE)
        return 4.0 * _FLOAT * self.parameters + kept + logits

    def _tower(self, tokens: int) -> Tower:
        return Tower(self.width, 4 * self.width, self.layers, tokens)


def encoder_shape(model: Model) -> EncoderShape:
    """Return the sizes of an encoder: from its files, or of a known hub id.

    Raises:
        ModelError: it is neither.
    """
    config = _config(model, KNOWN_ENCODERS)
    vision = {**_VISION, **config.get("vision_config", {})}
    if "vision_config" not in config and "hidden_size" in config:
        vision = {**_VISION, **config}  # a vision tower alone
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    siglip = str(config.get("model_type", model.name)).find("siglip") >= 0
    tower = _tower(vision, patches + (0 if siglip else 1))
    words = {**_TEXT, **config.get("text_config", {})}
    text = _tower(words, words["max_position_embeddings"])
    projection = config.get("projection_dim", vision["hidden_size"] if siglip else 512)
    return EncoderShape(
        tower,
        text,
        vision["image_size"],
        vision["patch_size"],
        projection,
        words["vocab_size"],
    )


def language_shape(model: Model) -> LanguageShape:
    """Return the sizes of a language model: from its files, or of a known hub id.

    Raises:
        ModelError: it is neither.
    """
    config = _words(model)
    return LanguageShape(
        config.get("n_embd") or config.get("hidden_size") or 768,
        config.get("n_layer") or config.get("num_hidden_layers") or 12,
        config.get("vocab_size", 50257),
    )


def llava_shape(encoder: Model, language: Model) -> LlavaShape:
    """Return the sizes of a LLaVA: from files, or of known hub ids.

    Raises:
        ModelError: they are neither.
    """
    vision = _config(encoder, KNOWN_ENCODERS).get("vision_config", {})
    return LlavaShape.of({"vision_config": vision, "text_config": _words(language)})


def _words(model: Model) -> Mapping[str, Any]:
    """Return the configuration of a language model, or of the one in a LLaVA."""
    config = _config(model, KNOWN_LANGUAGE_MODELS)
    words: Mapping[str, Any] = config.get("text_config", config)
    return words


def _tower(config: Mapping[str, Any], tokens: int) -> Tower:
    return Tower(
        config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"], tokens
    )


def _config(model: Model, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    folder = model.folder
    if folder is None:
        if model.path not in known:
            raise ModelError(f"the sizes of {model.name} are not known before it is here")
        return known[model.path]
    return load_json(folder / "config.json", ModelError, "get the model again")
