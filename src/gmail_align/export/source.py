"""What every format is made of: one route of an encoder, and what its features have to be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase

from gmail_align.artifacts import write_json
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import read_json
from gmail_align.encoders.merge import merge
from gmail_align.encoders.probe import compare
from gmail_align.encoders.route import Route
from gmail_align.encoders.tokenizer import has_tokenizer

TEXTS = ("A red ball on the grass.", "TWO cubes, and a Cat", "a photo of a very long text " * 40)
"""Texts that each format has to embed as the encoder does: with capitals, and longer than any."""
_PIPELINE_LENGTH = 64
"""Tokens to which transformers' zero-shot pipeline pads the texts of every SigLIP."""
PHOTO_TOLERANCE = 0.01
"""Largest difference of a photo's features: libraries differ in how they round when they resize."""


@dataclass
class ExportSource:
    """An encoder by one route, to be written in some format."""

    encoder: GmailEncoder
    route: Route
    notes: list[str] = field(default_factory=list)
    """What whoever loads the export has to know; it stands on the model card."""

    @cached_property
    def probe(self) -> dict[str, Tensor]:
        """``pixels``, ``image_features`` (not normalised), ``patches``, and what texts give."""
        encoder, route = self.encoder, self.route
        tensors = encoder.backbone.probe_inputs()
        pixels = tensors["pixels"]
        with torch.no_grad():
            tensors["image_features"] = encoder.embed_pixels(pixels, route)
            tensors["patches"] = encoder.trunk_and_patches(pixels, route)[1]
            if "input_ids" in tensors:
                ids = tensors["input_ids"]
                features = encoder.embed_text_ids(ids, torch.ones_like(ids), route)
                tensors["text_features"] = features
        return tensors

    @cached_property
    def merged(self) -> Backbone:
        """The route as a plain model of the base's own class."""
        return merge(self.encoder, self.route)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, cut to the text tower's length; None where the base has none."""
        if not self.encoder.has_texts or not has_tokenizer(self.encoder.base_folder):
            return None
        tokenizer = copy.deepcopy(self.encoder.tokenizer)
        tokenizer.model_max_length = self.encoder.backbone.text_length
        return tokenizer

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """:data:`TEXTS`, and one with a token that was added to the vocabulary, if there is one."""
        assert self.tokenizer is not None, "without a tokenizer, no text is embedded"
        special = set(self.tokenizer.all_special_tokens)
        added = [token for token in self.tokenizer.get_added_vocab() if token not in special]
        return (*TEXTS, *(f"a {token} ball" for token in sorted(added)[:1]))

    def write_processors(self, out: Path) -> None:
        """Write the image transform and, where there is one, the tokenizer."""
        write_json(out / "preprocessor_config.json", self.encoder.preprocess.to_config())
        if self.tokenizer is None:
            if self.encoder.has_texts:
                self.notes.append("The base has no tokenizer: this folder takes token ids alone.")
            return
        self.tokenizer.save_pretrained(out)
        if self.encoder.backbone.full_length:
            path = out / "tokenizer_config.json"
            config = {**read_json(path), "model_input_names": ["input_ids"]}
            write_json(path, config)
            self.notes.append(
                "Texts have to be padded to the full length: "
                '`tokenizer(texts, padding="max_length", truncation=True)`.'
            )
            length = self.encoder.backbone.text_length
            if length < _PIPELINE_LENGTH:
                self.notes.append(
                    f"transformers' zero-shot pipeline pads to {_PIPELINE_LENGTH} tokens, and this "
                    f"model has {length}: call the model itself."
                )

    @torch.no_grad()
    def check(self, what: str, image: Callable[[Tensor], Tensor]) -> float:
        """Return the largest difference of image features on the probe.

        Raises:
            ModelError: it is larger than rounding explains.
        """
        return compare(image(self.probe["pixels"]), self.probe["image_features"], what)

    @torch.no_grad()
    def check_patches(self, what: str, patches: Callable[[Tensor], Tensor]) -> float:
        """Return the largest difference of the patches' means on the probe.

        Raises:
            ModelError: it is larger than rounding explains.
        """
        return compare(patches(self.probe["pixels"]), self.probe["patches"], what)

    @torch.no_grad()
    def check_ids(self, what: str, text: Callable[[Tensor], Tensor]) -> float:
        """Return the largest difference of text features on the probe; 0 without a text tower.

        Raises:
            ModelError: it is larger than rounding explains.
        """
        if "input_ids" not in self.probe:
            return 0.0
        return compare(text(self.probe["input_ids"]), self.probe["text_features"], what)

    @torch.no_grad()
    def check_texts(self, what: str, embed: Callable[[list[str]], Tensor]) -> float:
        """Return the largest difference of the features of :attr:`texts`, embedded as people do.

        Raises:
            ModelError: it is larger than rounding explains.
        """
        if self.tokenizer is None:
            return 0.0
        expected = self.encoder.embed_texts(self.texts, self.route)
        return compare(embed(list(self.texts)), expected, f"{what} on texts")

    @torch.no_grad()
    def check_photo(self, what: str, embed: Callable[[Image.Image], Tensor]) -> float:
        """Return the largest difference of a photo's features, embedded as people do.

        Raises:
            ModelError: it is larger than another rounding of resized pixels explains.
        """
        image = photo()
        expected = self.encoder.embed_pixels(self.encoder.preprocess(image), self.route)
        return compare(embed(image), expected, f"{what} on a photo", PHOTO_TOLERANCE)


def photo() -> Image.Image:
    """Return an image of smooth blots, wider than tall."""
    blots = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((450, 300), Image.Resampling.BICUBIC)


def tokens_of(folder: Path, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return what the tokenizer of an export makes of texts, called as transformers documents."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    batch = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    return dict(batch)


def pixels_of(folder: Path, image: Image.Image) -> Tensor:
    """Return what the image processor of an export makes of a photo."""
    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"]
    return pixels
