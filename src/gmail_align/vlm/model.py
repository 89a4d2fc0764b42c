"""LLaVA put together from an encoder and a language model, or from another LLaVA."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import read_config
from gmail_align.encoders.language import LanguageModel, load_tokenizer, require_tokens
from gmail_align.encoders.merge import merge
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.encoders.route import Route
from gmail_align.encoders.stored import load_whole
from gmail_align.errors import ConfigError, ModelError
from gmail_align.runtime import stable_seed
from gmail_align.vlm.connector import PLAIN, Connector, projection
from gmail_align.vlm.conversations import IMAGE
from gmail_align.vlm.templates import TEMPLATES, Layout

PATCH_LAYER = -2
"""The hidden states whose patches LLaVA reads: those before the last layer."""


@dataclass(frozen=True)
class Llava:
    """A model with what is needed to talk to it."""

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    preprocess: Preprocess
    template: str
    """Name of its template."""
    connector: Connector = field(default_factory=Connector)
    """What stands before its projector."""
    head: Tensor | None = None
    """The padded head that the connector's design reads images by; None where it reads patches."""

    @property
    def layout(self) -> Layout:
        """The template with the tokenizer, for prompts and labels."""
        vision = self.model.config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2 + self.connector.extra
        return Layout(TEMPLATES[self.template], self.tokenizer, tokens)

    @property
    def first(self) -> nn.Linear:
        """The first layer of the projector."""
        layer: nn.Linear = self.model.model.multi_modal_projector.linear_1
        return layer

    def with_connector(self, connector: Connector, merged: Backbone) -> Llava:
        """Return the model with a connector, which reads images by a merged encoder."""
        head = None if connector.design in PLAIN else projection(merged)
        return replace(self, connector=connector, head=head)


def build_llava(
    encoder: GmailEncoder, language: LanguageModel, template: str, reads: Route, seed: int
) -> Llava:
    """Put a freshly drawn projector between an encoder's vision tower and a language model.

    Args:
        encoder: A CLIP or a SigLIP, aligned or not.
        language: A language model of Llama's format.
        template: Name of the template.
        reads: Route whose tower becomes the model's own.
        seed: Seed of the projector.

    Raises:
        ModelError: the encoder is neither, or the language model is not of Llama's format.
        ConfigError: the tokenizer lacks the template's control tokens.
    """
    tower = vision_tower(merge(encoder, reads))
    model = join_parts(tower.config, language, seed)
    model.model.vision_tower = tower
    built = Llava(model, language.tokenizer, encoder.preprocess, template)
    built.layout.end_id()
    return built


def join_parts(vision: Any, language: LanguageModel, seed: int) -> LlavaForConditionalGeneration:
    """Put a freshly drawn projector before a language model; the model lacks a vision tower.

    Args:
        vision: Configuration of the vision tower.
        language: A language model of Llama's format; its tokenizer gets ``<image>``.
        seed: Seed of the projector.

    Raises:
        ModelError: the language model is not of Llama's format.
    """
    words: Any = language.model
    if not isinstance(getattr(words, "lm_head", None), nn.Linear) or not hasattr(
        getattr(words, "model", None), "embed_tokens"
    ):
        raise ModelError(
            f"a {words.config.model_type} model cannot be LLaVA's language model: use one of"
            " Llama's format"
        )
    add_image_token(language)
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=words.config.to_dict(),
        image_token_index=language.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=PATCH_LAYER,
        vision_feature_select_strategy=patch_strategy(vision),
        tie_word_embeddings=bool(words.config.tie_word_embeddings),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "projector"))
        model.model.multi_modal_projector = type(model.model.multi_modal_projector)(config)
    model.model.vision_tower, model.model.language_model = None, words.model
    model.lm_head = words.lm_head
    return model


def patch_strategy(vision: Any) -> str:
    """Return how LLaVA takes a tower's patches: ``full`` where no class token precedes them."""
    return "full" if vision.model_type == "siglip_vision_model" else "default"


def continue_llava(folder: Path, encoder: GmailEncoder, template: str, reads: Route) -> Llava:
    """Open a LLaVA to train it further, with the vision tower of a route of ``encoder``.

    Args:
        folder: A folder of ours, or one in the layout of ``llava-hf``.
        encoder: A CLIP or a SigLIP, aligned or not.
        template: Name of the template.
        reads: Route whose tower becomes the model's own.

    Raises:
        ModelError: the folder is damaged, or reads other patches than the encoder's.
        ConfigError: the tokenizer lacks ``<image>`` or the template's control tokens.
    """
    tokenizer, kind = load_tokenizer(folder), read_config(folder).get("model_type")
    if kind != "llava":  # transformers would build a LLaVA of the usual size around what it finds
        raise ModelError(f"{folder} holds a {kind!r} model, and not a LLaVA: give one")
    model: Any = load_whole(LlavaForConditionalGeneration, folder, "download the model again")
    require_tokens(tokenizer, model, folder)
    config = model.config
    tower = vision_tower(merge(encoder, reads))
    width = model.model.multi_modal_projector.linear_1.in_features
    needed = PATCH_LAYER, patch_strategy(tower.config)
    if (config.vision_feature_layer, config.vision_feature_select_strategy) != needed:
        raise ModelError(
            f"{folder} reads layer {config.vision_feature_layer} with the strategy"
            f" {config.vision_feature_select_strategy}: with this encoder only layer {needed[0]}"
            f" with the strategy {needed[1]} can be trained further"
        )
    if width != tower.config.hidden_size:
        raise ModelError(
            f"the projector of {folder} reads patches {width} wide, and those of the encoder are"
            f" {tower.config.hidden_size} wide: use an encoder of its CLIP"
        )
    model.model.vision_tower, config.vision_config = tower, tower.config
    config.image_seq_length = (tower.config.image_size // tower.config.patch_size) ** 2
    opened = Llava(model, tokenizer, encoder.preprocess, template)
    if tokenizer.convert_tokens_to_ids(IMAGE) != config.image_token_id:
        raise ConfigError(
            f"the tokenizer of {folder} does not have {IMAGE} as the token of images that its model"
            " reads: use the tokenizer that belongs to it"
        )
    opened.layout.end_id()
    return opened


def vision_tower(merged: Backbone) -> PreTrainedModel:
    """Return the vision tower of a CLIP or a SigLIP as the class that LLaVA loads.

    Raises:
        ModelError: the model is neither.
    """
    plain: Any = merged.plain
    if plain.config.model_type not in ("clip", "siglip"):
        raise ModelError(
            f"LLaVA reads the patches of a CLIP or a SigLIP, and this encoder is a {merged.name}:"
            " use one of those"
        )
    tower: PreTrainedModel = AutoModel.from_config(plain.config.vision_config)
    tower.load_state_dict(plain.vision_model.state_dict())
    tower.eval().requires_grad_(False)
    return tower


def add_image_token(language: LanguageModel) -> None:
    """Make ``<image>`` one token of the tokenizer, with an embedding of its own."""
    language.tokenizer.add_tokens([IMAGE], special_tokens=True)
    rows = language.model.get_input_embeddings().num_embeddings
    if len(language.tokenizer) > rows:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            language.model.resize_token_embeddings(len(language.tokenizer), mean_resizing=False)
