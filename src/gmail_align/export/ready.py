"""What every format is made of: one route of an encoder, and what its features have to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from gmail_align.encoders.backbones import VisionOnly, backbone_of
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import model_files
from gmail_align.encoders.merge import merged_model
from gmail_align.encoders.probe import compare, probe_ids, probe_pixels
from gmail_align.encoders.route import Route
from gmail_align.errors import ModelError

_WEIGHTS = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True)
class Ready:
    """An encoder by one route, ready to be written."""

    encoder: GmailEncoder
    route: Route

    @cached_property
    def probe(self) -> dict[str, Tensor]:
        """``pixels``, ``image_features`` (not normalised), ``patches``, and what texts give."""
        encoder = self.encoder
        vision = backbone_of(encoder.clip).vision_config
        pixels = probe_pixels(vision.image_size, vision.num_channels)
        with torch.no_grad():
            found = {"pixels": pixels, "image_features": encoder.embed_pixels(pixels, self.route)}
            found["patches"] = encoder.trunk_and_patches(pixels, self.route)[1]
            if encoder.has_texts:
                text = cast("Any", encoder.clip.config).text_config
                ids = probe_ids(text.vocab_size, text.max_position_embeddings)
                if isinstance(encoder.clip, CLIPModel):
                    ids[ids == text.vocab_size - 1] = _end(text)
                found["input_ids"] = ids
                found["text_features"] = encoder.embed_text_ids(
                    ids, torch.ones_like(ids), self.route
                )
        return found

    @cached_property
    def model(self) -> nn.Module:
        """The route as a plain model of the base's own class."""
        return merged_model(self.encoder, self.route)

    @property
    def clip(self) -> CLIPModel:
        """The route as a plain CLIP.

        Raises:
            ModelError: the base is no CLIP.
        """
        if not isinstance(self.model, CLIPModel):
            raise ModelError(
                f"this format is for CLIP, but the encoder is built on {self.base_name}: export it "
                "as onnx or peft"
            )
        return self.model

    @property
    def base_name(self) -> str:
        """The class of the base model."""
        model = self.encoder.clip
        return type(model.vision_model if isinstance(model, VisionOnly) else model).__name__

    def copy_processors(self, out: Path) -> None:
        """Copy the base's tokenizer and preprocessing."""
        for path in model_files(self.encoder.base_folder):
            if path.name != "config.json" and not path.name.endswith(_WEIGHTS):
                (out / path.name).write_bytes(path.read_bytes())

    @torch.no_grad()
    def check(self, what: str, image: Callable[[Tensor], Tensor]) -> float:
        """Return the largest difference of image features on the probe.

        Raises:
            ModelError: it is larger than rounding explains.
        """
        return compare(image(self.probe["pixels"]), self.probe["image_features"], what)

    @torch.no_grad()
    def check_patches(self, what: str, patches: Callable[[Tensor], Tensor]) -> float:
        """Return the largest difference of the patches' means on the probe."""
        return compare(patches(self.probe["pixels"]), self.probe["patches"], what)

    @torch.no_grad()
    def check_texts(self, what: str, text: Callable[[Tensor], Tensor]) -> float:
        """Return the largest difference of text features on the probe; 0 without a text tower."""
        if "input_ids" not in self.probe:
            return 0.0
        return compare(text(self.probe["input_ids"]), self.probe["text_features"], what)


def _end(text: Any) -> int:
    """Return the id at which CLIP's text tower pools."""
    return int(text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id)
