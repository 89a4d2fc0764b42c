"""What every format is made of: one route of an encoder, and what its features have to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import model_files
from gmail_align.encoders.merge import merge
from gmail_align.encoders.probe import compare
from gmail_align.encoders.route import Route

_WEIGHTS = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True)
class Ready:
    """An encoder by one route, ready to be written."""

    encoder: GmailEncoder
    route: Route

    @cached_property
    def probe(self) -> dict[str, Tensor]:
        """``pixels``, ``image_features`` (not normalised), ``patches``, and what texts give."""
        encoder, route = self.encoder, self.route
        found = encoder.backbone.probe_inputs()
        pixels = found["pixels"]
        with torch.no_grad():
            found["image_features"] = encoder.embed_pixels(pixels, route)
            found["patches"] = encoder.trunk_and_patches(pixels, route)[1]
            if "input_ids" in found:
                ids = found["input_ids"]
                found["text_features"] = encoder.embed_text_ids(ids, torch.ones_like(ids), route)
        return found

    @cached_property
    def merged(self) -> Backbone:
        """The route as a plain model of the base's own class."""
        return merge(self.encoder, self.route)

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
