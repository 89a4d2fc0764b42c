"""What IFCap is trained on: captions, and what stands for the image of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize

from gmail_align.artifacts import write_bytes
from gmail_align.captioning.caption_set import CaptionSet
from gmail_align.captioning.config import VALIDATION_BATCH
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.ifcap.datastore import Datastore, read_datastore, write_datastore
from gmail_align.captioning.ifcap.model import DATASTORE, IFCap, inject_noise
from gmail_align.captioning.ifcap.retrieval import Groups
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData, EmbeddedCaptions
from gmail_align.captioning.prompt import CaptionBatch
from gmail_align.captioning.provenance import provenance, require_finite, require_one_encoder
from gmail_align.captioning.tokens import TokenTable, tokenise
from gmail_align.data.batches import batch_indices
from gmail_align.data.ids import ByCaption
from gmail_align.data.joins import caption_texts
from gmail_align.data.mapped import blocks
from gmail_align.encoders.language import LanguageModel
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.store import Features, open_features
from gmail_align.progress import say
from gmail_align.runtime import resolve_device, stable_seed

RETRIEVED = "retrieved.safetensors"
_NOISE_BLOCK = 65_536


@dataclass(frozen=True)
class IFCapTraining:
    """The data of one training, and the captioner that is trained."""

    captioner: IFCap
    tokens: TokenTable
    """The captions."""
    rows: Int[Tensor, " m"]
    """Row of each caption in the datastore."""
    retrieved: Int[Tensor, "n k"]
    """Rows of the captions retrieved for each row of the datastore."""
    images: Int[Tensor, " n"]
    """Row of a generated image for each row of the datastore; -1 where there is none."""
    generated: Features | None
    validation: CaptionSet | None
    looked_up: Int[Tensor, "v l"] | None
    """Rows of the captions looked up for the image of each validation caption."""
    temporary_files: tuple[Path, ...]
    """Kept until the training is complete: the retrieved rows."""

    @property
    def config(self) -> IFCapConfig:
        """The captioner's settings."""
        return self.captioner.config

    @classmethod
    def check(cls, config: IFCapConfig, data: CaptionerData) -> None:
        """Refuse features of encoders that do not belong together.

        Raises:
            ConfigError: there are no captions, or the mode needs generated images and there are
                none.
            DataError: features come from different encoders.
        """
        texts, images, held = data.texts, data.images, data.validation
        if texts is None:
            raise ConfigError("IFCap is trained on captions: give captions and text features")
        if len(images) > 1:
            raise ConfigError("IFCap takes one set of generated images: give one")
        if config.mode != "text_noise" and not images:
            raise ConfigError(f"mode is {config.mode}: give features of generated images")
        reads = provenance(texts.features)["encoder"]
        require_one_encoder(reads, [part.features for part in (*images, held) if part])
        if held:
            looks_up = provenance(texts.retrieval or texts.features)["encoder"]
            require_one_encoder(looks_up, [held.retrieval or held.features])

    @classmethod
    def prepare(
        cls,
        config: IFCapConfig,
        data: CaptionerData,
        language: LanguageModel,
        out: Path,
        seed: int,
    ) -> IFCapTraining:
        """Write the datastore, draw the fusion module, tokenise, and retrieve.

        Raises:
            ConfigError: there are too few captions to retrieve from, or no caption has a generated
                image.
            DataError: captions and features do not belong together, or differ in width.
            ModelError: the language model has too few positions, or the heads do not divide its
                width.
            MissingExtraError: the tagger is not installed.
        """
        assert data.texts is not None  # ``check`` refuses that
        store = _make_datastore(config, data.texts, out / DATASTORE)
        language.require_heads(config.heads)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(seed, "fusion"))
            captioner = IFCap(language, store, config, _identity(config, data))
        captioner.to(resolve_device(config.device)).train()
        generated = open_features(data.images[0].features) if data.images else None
        images = _first_images(store, generated)
        rows = _trained_rows(config, images)
        texts = (store.texts[row] for row in rows.tolist())
        tokens = tokenise(texts, language.tokenizer, config.max_tokens)
        captioner.require_room()
        retrieved = retrieve_for_captions(captioner, out / RETRIEVED, seed)
        held, looked_up = _read_validation(captioner, data.validation)
        kept = (out / RETRIEVED,)
        return cls(captioner, tokens, rows, retrieved, images, generated, held, looked_up, kept)

    @property
    def counts(self) -> dict[str, int]:
        """What was trained on, for the manifest."""
        return {"captions": len(self.rows), "generated": int((self.images >= 0).sum())}

    def batch(self, step: int, seed: int) -> CaptionBatch:
        """Return the batch of a step; noise and drops come from torch's generator."""
        picked = torch.from_numpy(batch_indices(step, self.config.batch_size, len(self.rows), seed))
        rows = self.rows[picked]
        prompt = self.captioner.join(self.inputs(rows), self.retrieved[rows], self.objects(rows))
        return self.tokens.behind(prompt, picked)

    def held_out(self) -> Iterator[CaptionBatch]:
        """Yield the validation captions in order."""
        if self.validation is None or self.looked_up is None:
            return
        for rows in torch.arange(len(self.validation)).split(VALIDATION_BATCH):
            prompt = partial(self.captioner.prompt_with, rows=self.looked_up[rows])
            yield self.validation.batch(rows, prompt)

    def inputs(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Return what stands for the image of each caption, at unit length."""
        config, store = self.config, self.captioner.store
        features = store.features[rows].float()
        texts = inject_noise(features, config.noise_variance, torch.randn_like(features))
        if self.generated is None or config.mode == "text_noise":
            return texts
        images = self.images[rows]
        use = images >= 0
        if config.mode == "mix":
            use &= torch.rand(len(rows)) < config.generated_share
        generated = require_finite(self.generated.array[images.clamp(min=0)].float())
        return torch.where(use[:, None], normalize(generated, dim=-1), texts)

    def objects(self, rows: Int[Tensor, " b"]) -> list[list[str]]:
        """Return the nouns of each caption that the hard prompt names, some left out at random."""
        config, store = self.config, self.captioner.store
        named = [
            [noun for noun in store.nouns[row] if noun in store.vocabulary][: config.max_nouns]
            for row in rows.tolist()
        ]
        keep = torch.rand(len(rows), config.max_nouns) >= config.drop_nouns
        return [
            [noun for noun, kept in zip(some, row, strict=False) if kept]
            for some, row in zip(named, keep.tolist(), strict=True)
        ]


def retrieve_for_captions(captioner: IFCap, path: Path, seed: int) -> Int[Tensor, "n k"]:
    """Return the captions that each caption retrieves as if it were an image (Sec. 3.1).

    The query is its text feature with noise; captions of the very same words are left out. The
    rows are kept in ``path`` until the training is complete.
    """
    if path.exists():
        return load_file(path)["rows"].long()
    store, config = captioner.store, captioner.config
    groups = store.same_words()
    parts = []
    for start in range(0, len(store), _NOISE_BLOCK):
        keys = store.keys[start : start + _NOISE_BLOCK].float()
        generator = torch.Generator().manual_seed(stable_seed(seed, "retrieval", start))
        noise = torch.randn(keys.shape, generator=generator)
        queries = inject_noise(keys, config.retrieval_noise_variance, noise)
        own = Groups(groups[start : start + _NOISE_BLOCK], groups)
        parts.append(
            store.look_up(queries, config.retrieved, config.index, own, device=captioner.device)
        )
    rows = torch.cat(parts)
    write_bytes(path, save({"rows": rows.int()}))
    return rows


def _make_datastore(config: IFCapConfig, texts: EmbeddedCaptions, folder: Path) -> Datastore:
    """Write and open the captions that are looked up."""
    write_datastore(folder, caption_texts(texts.captions), texts.features, texts.retrieval, config)
    store = read_datastore(folder)
    if config.captions_needed > len(store):
        raise ConfigError(
            f"retrieved and noun_captions ask for {config.captions_needed} captions an image, and"
            f" there are {len(store)}: lower them, or give more captions"
        )
    return store


def _read_validation(
    captioner: IFCap, images: CaptionedImages | None
) -> tuple[CaptionSet | None, Int[Tensor, "v l"] | None]:
    """Read held-out captions, and look captions up for each of their images once."""
    if images is None:
        return None, None
    held = CaptionSet.read([images], captioner.language, captioner.config.max_tokens)
    ids = open_features(images.features).ids
    keys = open_features(images.retrieval or images.features)
    each, place = held.rows.unique(return_inverse=True)
    near = captioner.look_up(keys.array[keys.rows(ids[row] for row in each.tolist())])
    return held, near[place]


def _identity(config: IFCapConfig, data: CaptionerData) -> dict[str, str]:
    """Name the encoders that the captioner reads, and weights and route of what it saw."""
    texts = data.texts
    assert texts is not None
    looks_up = provenance(texts.retrieval or texts.features)["encoder"]
    identity = {**provenance(texts.features), "retrieval": looks_up}
    if config.mode != "text_noise" and data.images:
        generated = provenance(data.images[0].features)
        identity |= {key: generated[key] for key in ("weights", "route")}
    return identity


def _first_images(store: Datastore, generated: Features | None) -> Int[Tensor, " n"]:
    """Return the row of the first image generated from each caption; -1 where there is none."""
    if generated is None:
        return torch.full((len(store),), -1)
    if generated.array.shape[1] != store.features.shape[1]:
        raise DataError(
            f"features of images are {generated.array.shape[1]} wide and those of captions"
            f" {store.features.shape[1]}: extract both with one encoder, after its projection"
        )
    images = ByCaption(generated.ids)
    rows = (own[0] if own else -1 for block in blocks(store.ids) for own in images.rows(block))
    return torch.tensor(list(rows))


def _trained_rows(config: IFCapConfig, images: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Return the rows of the captions that are trained, and print how many are left out."""
    rows = torch.arange(len(images))
    if config.mode == "text_noise":
        return rows
    with_image = rows[images >= 0]
    if not len(with_image):
        raise ConfigError(
            f"mode is {config.mode} and no caption has a generated image: give features of images"
            " generated from these captions"
        )
    if config.mode == "mix":
        return rows
    if len(with_image) < len(rows):
        say(
            f"{len(rows) - len(with_image)} of {len(rows)} captions have no generated image and"
            " are only looked up; mode = 'mix' trains on them too"
        )
    return with_image


TRAINING = IFCapTraining
