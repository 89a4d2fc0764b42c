"""ClipCap: a language model goes on from a prefix of embeddings made of an image feature.

Mokady, Hertz and Bermano, "ClipCap: CLIP Prefix for Image Captioning" (2021), both variants: an MLP
mapper whose language model is trained too, and a transformer mapper before a frozen one. Unlike in
the released code, the end-of-text token is trained, no token counts as padding, and features are
scaled alike in training and in prediction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gmail_align.captioning.captioner import (
    CONFIG,
    LANGUAGE_MODEL,
    damage_named,
    load_mapper,
    save_parts,
)
from gmail_align.captioning.clipcap.config import MapperShape
from gmail_align.captioning.clipcap.mappers import build_mapper
from gmail_align.captioning.decode import Decoding
from gmail_align.captioning.prompt import Prompt
from gmail_align.captioning.provenance import require_width
from gmail_align.encoders.language import LanguageModel, load_language_model


@dataclass(frozen=True)
class Scaling:
    """What happens to the length of a feature before it is mapped."""

    normalise: bool = True
    """Bring every feature to the length ``norm``; otherwise it stays as it is."""
    norm: float | None = None
    """The length; 1 when None."""
    raw_in_training: bool = False
    """ClipCap's mismatch: features are scaled in prediction alone."""

    def __call__(self, features: Float[Tensor, "b d"], training: bool) -> Float[Tensor, "b d"]:
        """Return features at the length that they are mapped at."""
        if not self.normalise or (training and self.raw_in_training):
            return features
        unit = F.normalize(features, dim=-1)
        return unit if self.norm is None else self.norm * unit


class ClipCap(nn.Module):
    """A mapper and the language model behind it.

    Args:
        language: The language model.
        width: Width of the image features.
        shape: Shape of the mapper.
        scaling: What happens to the length of a feature.
        tuned: Train the language model too; a frozen one never drops out anything.
        decoding: How captions are searched for.
        identity: The encoder, the weights and the route of the training features.
    """

    def __init__(
        self,
        language: LanguageModel,
        width: int,
        shape: MapperShape | None = None,
        *,
        scaling: Scaling | None = None,
        tuned: bool = True,
        decoding: Decoding | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.language_model = language.model.requires_grad_(tuned)
        self.language, self.width, self.tuned = language, width, tuned
        self.shape, self.scaling = shape or MapperShape(), scaling or Scaling()
        self.decoding, self.identity = decoding or Decoding(), dict(identity or {})
        self.mapper = build_mapper(self.shape, width, language.width)

    @property
    def mapper_settings(self) -> dict[str, Any]:
        """What the mapper's weights depend on, as JSON values."""
        return {"feature_width": self.width, **asdict(self.shape), **asdict(self.scaling)}

    def train(self, mode: bool = True) -> ClipCap:
        """Switch dropout on or off, in what is trained."""
        super().train(mode)
        if not self.tuned:
            self.language_model.eval()
        return self

    def prompt(
        self, features: Float[Tensor, "b d"], retrieval: Float[Tensor, "b e"] | None = None
    ) -> Prompt:
        """Turn image features into the embeddings that a caption starts from.

        Args:
            features: One image a row.
            retrieval: Ignored: ClipCap looks nothing up.

        Raises:
            DataError: the features are of another width than the captioner's.
        """
        require_width(features, self.width)
        there = next(self.mapper.parameters()).device
        mapped = self.mapper(self.scaling(features.float().to(there), self.training))
        return Prompt(mapped.view(len(features), self.shape.prefix_length, -1))

    def save(self, folder: Path) -> None:
        """Write the captioner's files."""
        own = {name: getattr(self.decoding, name) for name in ("beam", "max_tokens", "ends")}
        settings = {"decoding": own, "tune_language_model": self.tuned}
        save_parts(folder, self, "clipcap", settings)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> ClipCap:
        """Read what :meth:`save` wrote, ready to predict.

        Raises:
            ArtifactError: a file is damaged.
            ModelError: the language model is damaged.
        """
        language = load_language_model(folder / LANGUAGE_MODEL)
        with damage_named(folder):
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            mapper = config["mapper"]
            model = cls(
                language,
                mapper["feature_width"],
                MapperShape(**{key: mapper[key] for key in MapperShape.__dataclass_fields__}),
                scaling=Scaling(**{key: mapper[key] for key in Scaling.__dataclass_fields__}),
                tuned=config["tune_language_model"],
                decoding=_stored_decoding(config["decoding"], language),
                identity=config["trained_on"],
            )
            load_mapper(model.mapper, folder)
        return model.to(device).eval()


def _stored_decoding(stored: Mapping[str, Any], language: LanguageModel) -> Decoding:
    """Return how captions are searched for, as a captioner's file says.

    Raises:
        ValueError: no training has written this.
    """
    how = Decoding(**{**stored, "ends": tuple(stored["ends"])})
    language.require_positions(0, how.max_tokens)
    tokens = range(len(language.tokenizer))
    whole = all(type(one) is int for one in (how.beam, how.max_tokens, *how.ends))
    if not whole or how.max_tokens < 1 or not {how.beam - 1, *how.ends} <= set(tokens):
        raise ValueError("its decoding holds numbers that no training wrote")
    return how


CAPTIONER = ClipCap
