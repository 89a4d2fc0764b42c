"""What IFCap is trained on: captions, and what stands for the image of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize

from gmail_align.artifacts import Artifact, write_bytes
from gmail_align.captioning.captions import Rows
from gmail_align.captioning.ifcap.model import inject_noise
from gmail_align.captioning.ifcap.prompts import Reader
from gmail_align.captioning.ifcap.retrieval import Groups
from gmail_align.captioning.origin import require_finite
from gmail_align.captioning.tokens import TokenTable, tokenise
from gmail_align.data.batches import batch_indices
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.store import Features, read_features
from gmail_align.progress import say
from gmail_align.runtime import stable_seed

RETRIEVED = "retrieved.safetensors"
_NOISE_BLOCK = 65_536


@dataclass(frozen=True)
class CaptionSource:
    """What IFCap is trained on."""

    rows: Rows
    """(caption id, caption)."""
    texts: Artifact
    """Text features of the captions, by the encoder whose images it will read."""
    retrieval: Artifact | None = None
    """Text features by another encoder that looks captions up; ``texts`` when None."""
    generated: Artifact | None = None
    """Features of images generated from the captions, named ``{caption id}-{k}``."""


@dataclass(frozen=True)
class ImageSource:
    """Held-out images, as the captioner will read them."""

    features: Artifact
    """Image features."""
    rows: Rows
    """(id of an image, caption)."""
    retrieval: Artifact | None = None
    """Image features by the encoder that looks captions up; ``features`` when None."""


@dataclass(frozen=True)
class Training:
    """The captions of a training, and what stands for the image of each."""

    reader: Reader
    tokens: TokenTable
    """The captions."""
    rows: Int[Tensor, " m"]
    """Row of each caption in the datastore."""
    retrieved: Int[Tensor, "n k"]
    """Rows of the captions retrieved for each row of the datastore."""
    images: Int[Tensor, " n"]
    """Row of a generated image for each row of the datastore; -1 where there is none."""
    generated: Features | None

    @classmethod
    def make(cls, reader: Reader, source: CaptionSource, out: Path, seed: int) -> Training:
        """Tokenise, retrieve and find generated images.

        Raises:
            ConfigError: the mode needs generated images, and no caption has one.
            DataError: features of images and of captions differ in width.
        """
        store, config = reader.store, reader.config
        generated = read_features(source.generated) if source.generated else None
        places = {name: row for row, name in enumerate(generated.ids)} if generated else {}
        first = [_first_image(name, places) for name in store.ids]
        images = torch.tensor(first)
        if config.mode != "text_noise" and not bool((images >= 0).any()):
            raise ConfigError(
                f"mode is {config.mode} and no caption has a generated image: give features of"
                " images generated from these captions"
            )
        if generated is not None and generated.array.shape[1] != store.features.shape[1]:
            raise DataError(
                f"features of images are {generated.array.shape[1]} wide and those of captions"
                f" {store.features.shape[1]}: extract both with one encoder, after its projection"
            )
        rows = torch.arange(len(store))
        if config.mode == "gen_embed":
            rows = rows[images >= 0]
            if len(rows) < len(store):
                say(
                    f"{len(store) - len(rows)} of {len(store)} captions have no generated image and"
                    " are only looked up; mode = 'mix' trains on them too"
                )
        texts = [store.texts[row] for row in rows.tolist()]
        tokens = tokenise(texts, reader.tokenizer, config.max_tokens)
        retrieved = retrieve_for_captions(reader, out / RETRIEVED, seed)
        return cls(reader, tokens, rows, retrieved, images, generated)

    def __len__(self) -> int:
        return len(self.rows)

    def loss(self, step: int, seed: int) -> Tensor:
        """Return the loss of a step; noise and drops come from torch's generator."""
        config = self.reader.config
        picked = torch.from_numpy(batch_indices(step, config.batch_size, len(self), seed))
        rows = self.rows[picked]
        prompt = self.reader.prompt(self.inputs(rows), self.retrieved[rows], self.objects(rows))
        ids, mask = self.tokens.batch(picked)
        device = self.reader.device
        return self.reader.model.loss(prompt, ids.to(device), mask.to(device))

    def inputs(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Return what stands for the image of each caption, at unit length."""
        config, store = self.reader.config, self.reader.store
        features = store.features[rows].float()
        texts = inject_noise(features, config.noise_variance, torch.randn_like(features))
        if self.generated is None or config.mode == "text_noise":
            return texts
        images = self.images[rows]
        use = images >= 0
        if config.mode == "mix":
            use &= torch.rand(len(rows)) < config.generated_share
        found = require_finite(self.generated.array[images.clamp(min=0)].float())
        made = normalize(found, dim=-1)
        return torch.where(use[:, None], made, texts)

    def objects(self, rows: Int[Tensor, " b"]) -> list[list[str]]:
        """Return the nouns of each caption that the hard prompt names, some left out at random."""
        config, store = self.reader.config, self.reader.store
        found = [
            [noun for noun in store.nouns[row] if noun in store.vocabulary][: config.max_nouns]
            for row in rows.tolist()
        ]
        keep = torch.rand(len(rows), config.max_nouns) >= config.drop_nouns
        return [
            [noun for noun, kept in zip(some, row, strict=False) if kept]
            for some, row in zip(found, keep.tolist(), strict=True)
        ]


def retrieve_for_captions(reader: Reader, path: Path, seed: int) -> Int[Tensor, "n k"]:
    """Return the captions that each caption retrieves as if it were an image (Sec. 3.1).

    The query is its text feature with noise; captions of the very same words are left out. What is
    found is kept in ``path`` until the training is complete.
    """
    if path.exists():
        return load_file(path)["rows"].long()
    store, config = reader.store, reader.config
    groups = store.same_words()
    found = []
    for start in range(0, len(store), _NOISE_BLOCK):
        keys = store.keys[start : start + _NOISE_BLOCK].float()
        generator = torch.Generator().manual_seed(stable_seed(seed, "retrieval", start))
        noise = torch.randn(keys.shape, generator=generator)
        queries = inject_noise(keys, config.retrieval_noise_variance, noise)
        own = Groups(groups[start : start + _NOISE_BLOCK], groups)
        found.append(
            store.look_up(queries, config.retrieved, config.index, own, device=reader.device)
        )
    rows = torch.cat(found)
    write_bytes(path, save({"rows": rows.int()}))
    return rows


def _first_image(caption_id: str, places: Mapping[str, int]) -> int:
    """Return the row of the first image generated from a caption; -1 when there is none."""
    return places.get(f"{caption_id}-0", -1)
