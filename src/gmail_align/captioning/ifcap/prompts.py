"""Prompts of an IFCap, made of features and of captions that are looked up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from gmail_align.captioning.clipcap.folder import require_positions
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.ifcap.datastore import Datastore
from gmail_align.captioning.ifcap.entities import hard_prompt
from gmail_align.captioning.ifcap.model import IFCap
from gmail_align.captioning.language import Prompt
from gmail_align.captioning.tokens import pad_left


class Reader:
    """Makes prompts of features and looked-up captions, in training and in prediction alike."""

    def __init__(
        self,
        model: IFCap,
        tokenizer: PreTrainedTokenizerBase,
        store: Datastore,
        config: IFCapConfig,
    ) -> None:
        self.model, self.tokenizer, self.store, self.config = model, tokenizer, store, config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def prompt(
        self,
        features: Float[Tensor, "b d"],
        rows: Int[Tensor, "b n"],
        objects: Sequence[Sequence[str]],
    ) -> Prompt:
        """Put unit features, retrieved captions and objects together."""
        ids, mask = self.hard(objects)
        retrieved = self.store.features[rows[:, : self.config.retrieved]].float()
        device = self.device
        return self.model.prompt(
            features.to(device), retrieved.to(device), ids.to(device), mask.to(device)
        )

    def look_up(self, keys: Float[Tensor, "b e"]) -> Int[Tensor, "b n"]:
        """Return the rows of the captions nearest to each image."""
        config = self.config
        return self.store.look_up(keys, config.captions_needed, config.index, device=self.device)

    def of_images(self, features: Float[Tensor, "b d"], rows: Int[Tensor, "b n"]) -> Prompt:
        """Prompt with images, captions that were looked up for them, and what these agree on."""
        counted = rows[:, : self.config.noun_captions].tolist()
        objects = [self.store.objects(some, self.config) for some in counted]
        return self.prompt(normalize(features.float(), dim=-1), rows, objects)

    def hard(
        self, objects: Sequence[Sequence[str]]
    ) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Tokenise hard prompts, padded on the left."""
        texts = [hard_prompt(some) for some in objects]
        return pad_left(self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def require_room(self) -> None:
        """Refuse a GPT-2 whose positions the longest prompt and caption may exceed."""
        longest = sorted(self.store.vocabulary, key=len)[-self.config.max_nouns :]
        length = self.hard([longest])[0].shape[1]
        require_positions(
            self.model.gpt2, self.config.prefix_length + length, self.config.max_tokens
        )
