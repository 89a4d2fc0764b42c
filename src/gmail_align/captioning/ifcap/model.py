"""IFCap: a captioner that can be trained on captions alone, and reads images.

Lee et al., "IFCap: Image-like Retrieval and Frequency-based Entity Filtering for Zero-shot
Captioning" (EMNLP 2024). In training a caption's own text feature with noise stands for the image;
with GMAIL the aligned feature of an image generated from the caption does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn
from torch.nn.functional import normalize

from gmail_align.captioning.captioner import (
    CONFIG,
    LANGUAGE_MODEL,
    damage_named,
    load_mapper,
    save_parts,
)
from gmail_align.captioning.clipcap.mappers import Transformer, TransformerLayer
from gmail_align.captioning.decode import Decoding
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.ifcap.datastore import Datastore, read_datastore
from gmail_align.captioning.ifcap.entities import hard_prompt
from gmail_align.captioning.prompt import Prompt
from gmail_align.captioning.provenance import require_width
from gmail_align.captioning.tokens import pad_left
from gmail_align.encoders.language import LanguageModel, load_language_model

DATASTORE = "datastore"


def inject_noise(
    features: Float[Tensor, "b d"], variance: float, noise: Float[Tensor, "b d"]
) -> Float[Tensor, "b d"]:
    """Move unit features by ``noise`` (standard normal) times the deviation, back to unit length.

    This is the noise injection of CapDec and IFCap: noisy text features stand for image features.
    """
    moved = normalize(features, dim=-1) + math.sqrt(variance) * noise
    return normalize(moved, dim=-1)


class Fusion(nn.Module):
    """The feature, looking at retrieved captions, becomes a soft prompt (IFCap's fusion module).

    Args:
        width: Width of the features.
        hidden: Width of the language model's embeddings.
        prefix_length: Embeddings of the soft prompt, and those that the feature is spread over.
        layers: Layers of the transformer behind the one of cross-attention.
        heads: Attention heads of a layer.
    """

    def __init__(
        self, width: int, hidden: int, *, prefix_length: int = 10, layers: int = 8, heads: int = 8
    ) -> None:
        super().__init__()
        self.prefix_length = prefix_length
        self.linear = nn.Linear(width, prefix_length * hidden)
        self.retrieved = nn.Linear(width, hidden)
        self.cross = TransformerLayer(hidden, heads)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, hidden))
        self.transformer = Transformer(hidden, layers, heads)

    def forward(
        self, features: Float[Tensor, "b d"], retrieved: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b k h"]:
        """Return the soft prompt of each feature."""
        spread = self.linear(features).unflatten(-1, (self.prefix_length, -1))
        fused = self.cross(spread, self.retrieved(retrieved))
        constants = self.prefix_const.expand(len(features), -1, -1)
        mapped: Tensor = self.transformer(torch.cat([fused, constants], dim=1))
        return mapped[:, self.prefix_length :]


class IFCap(nn.Module):
    """The fusion module, the captions it looks up, and the language model, which is trained too.

    Args:
        language: The language model.
        store: The captions that are looked up.
        config: Shape of the fusion module, and how prompts are made.
        identity: The encoder, the weights and the route of the training features.
    """

    def __init__(
        self,
        language: LanguageModel,
        store: Datastore,
        config: IFCapConfig,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.language_model = language.model
        self.language, self.store, self.config = language, store, config
        self.identity, self.width = dict(identity or {}), store.features.shape[1]
        self.decoding = Decoding(beam=config.beam, max_tokens=config.max_tokens)
        shape = {name: getattr(config, name) for name in ("prefix_length", "layers", "heads")}
        self.mapper_settings: dict[str, Any] = {"feature_width": self.width, **shape}
        self.mapper = Fusion(self.width, language.width, **shape)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.mapper.parameters()).device

    def prompt(
        self, features: Float[Tensor, "b d"], retrieval: Float[Tensor, "b e"] | None = None
    ) -> Prompt:
        """Prompt with images, the captions nearest to them, and the objects these agree on.

        Args:
            features: One image a row.
            retrieval: Features of the images by the encoder that looks captions up; ``features``
                when None.

        Raises:
            DataError: the features are of another width than the captioner's.
        """
        require_width(features, self.width)
        queries = features if retrieval is None else retrieval
        return self.prompt_with(features, self.look_up(queries))

    def look_up(self, queries: Float[Tensor, "b e"]) -> Int[Tensor, "b n"]:
        """Return the rows of the captions nearest to each image."""
        config = self.config
        return self.store.look_up(queries, config.captions_needed, config.index, device=self.device)

    def prompt_with(self, features: Float[Tensor, "b d"], rows: Int[Tensor, "b n"]) -> Prompt:
        """Prompt with images and the captions that were looked up for them."""
        counted = rows[:, : self.config.noun_captions].tolist()
        objects = [self.store.objects(some, self.config) for some in counted]
        return self.join(normalize(features.float(), dim=-1), rows, objects)

    def join(
        self,
        features: Float[Tensor, "b d"],
        rows: Int[Tensor, "b n"],
        objects: Sequence[Sequence[str]],
    ) -> Prompt:
        """Put the soft prompt of unit features and retrieved captions before the hard one."""
        ids, mask = self.hard(objects)
        retrieved = self.store.features[rows[:, : self.config.retrieved]].float()
        there = self.device
        soft = self.mapper(features.to(there), retrieved.to(there))
        words = self.language_model.get_input_embeddings()(ids.to(there))
        whole = torch.ones(soft.shape[:2], dtype=torch.bool, device=there)
        return Prompt(torch.cat([soft, words], dim=1), torch.cat([whole, mask.to(there)], dim=1))

    def hard(
        self, objects: Sequence[Sequence[str]]
    ) -> tuple[Integer[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Tokenise hard prompts, padded on the left."""
        texts = [hard_prompt(some) for some in objects]
        return pad_left(self.language.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def require_room(self) -> None:
        """Check that the longest prompt and caption fit into the language model's positions.

        Raises:
            ModelError: they do not.
        """
        longest = sorted(self.store.vocabulary, key=len)[-self.config.max_nouns :]
        length = self.hard([longest])[0].shape[1]
        self.language.require_positions(self.config.prefix_length + length, self.config.max_tokens)

    def save(self, folder: Path) -> None:
        """Write the captioner's files beside its datastore."""
        settings = self.config.model_dump(mode="json", exclude={"device", "optim", "vocabulary"})
        save_parts(folder, self, "ifcap", {"settings": settings})

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> IFCap:
        """Read what :meth:`save` wrote, ready to predict.

        Raises:
            ArtifactError: a file is damaged.
            ModelError: the language model is damaged.
        """
        language = load_language_model(folder / LANGUAGE_MODEL)
        store = read_datastore(folder / DATASTORE)
        with damage_named(folder):
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            settings = IFCapConfig(**config["settings"])
            model = cls(language, store, settings, config["trained_on"])
            load_mapper(model.mapper, folder)
        return model.to(device).eval()


CAPTIONER = IFCap
