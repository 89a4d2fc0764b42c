"""What a captioner is, and how one lies on disk.

    captioner/
    ├── language_model/       weights and tokenizer, as transformers saves them
    ├── mapper.safetensors    what turns features into a prompt
    ├── config.json           its kind, its settings, and where its features come from
    └── events.jsonl          losses and validation scores of the training

An IFCap's folder also has ``datastore/``, the captions that it looks up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gmail_align.artifacts import Artifact, write_bytes, write_json
from gmail_align.captioning.decode import Decoding
from gmail_align.captioning.inputs import CaptionerData
from gmail_align.captioning.kinds import CAPTIONERS
from gmail_align.captioning.prompt import CaptionBatch, Prompt
from gmail_align.captioning.tokens import TokenTable
from gmail_align.encoders.folder import require_depth
from gmail_align.encoders.language import LanguageModel
from gmail_align.encoders.stored import require_finite
from gmail_align.errors import ArtifactError, damage_explained

LANGUAGE_MODEL, MAPPER, CONFIG = "language_model", "mapper.safetensors", "config.json"


@runtime_checkable
class CaptionerModel(Protocol):
    """A language model, and what turns image features into the prompt it goes on from."""

    @property
    def language(self) -> LanguageModel:
        """The language model."""

    @property
    def mapper(self) -> nn.Module:
        """What turns features into embeddings that the language model reads."""

    @property
    def decoding(self) -> Decoding:
        """How captions are searched for unless a prediction chooses otherwise."""

    @property
    def identity(self) -> Mapping[str, str]:
        """The encoder, the weights and the route of the features that it was trained on."""

    @property
    def mapper_settings(self) -> Mapping[str, Any]:
        """What the mapper's weights depend on, as JSON values."""

    def prompt(self, features: Tensor, retrieval: Tensor | None = None) -> Prompt:
        """Turn image features into prompts.

        Args:
            features: One image a row.
            retrieval: Features of the same images by the encoder that captions are looked up with;
                ``features`` when None. Captioners that look nothing up ignore it.
        """

    def save(self, folder: Path) -> None:
        """Write the captioner's files."""

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> CaptionerModel:
        """Read what :meth:`save` wrote, ready to predict."""


@runtime_checkable
class CaptionerTraining(Protocol):
    """The data of one training, and the captioner that is trained."""

    @property
    def captioner(self) -> CaptionerModel:
        """What is trained."""

    @property
    def tokens(self) -> TokenTable:
        """The captions that are trained."""

    @property
    def temporary_files(self) -> tuple[Path, ...]:
        """Files that an interrupted training keeps and a complete one deletes."""

    @classmethod
    def check(cls, config: Any, data: CaptionerData) -> None:
        """Refuse what cannot be trained together, before anything is read.

        Raises:
            UserError: the message says what does not fit.
        """

    @classmethod
    def prepare(
        cls, config: Any, data: CaptionerData, language: LanguageModel, out: Path, seed: int
    ) -> CaptionerTraining:
        """Read the data and build an untrained captioner.

        ``out`` is the captioner's folder, for files that an interrupted training keeps.
        """

    @property
    def counts(self) -> dict[str, int]:
        """What was trained on, for the manifest."""

    def batch(self, step: int, seed: int) -> CaptionBatch:
        """Return the batch of a step, a pure function of (seed, step) and torch's generator."""

    def held_out(self) -> Iterator[CaptionBatch]:
        """Yield the validation captions in order."""


def training_class(kind: str) -> Any:
    """Import the :class:`CaptionerTraining` of a kind."""
    return resolve_name(f"{CAPTIONERS[kind].package}.training:TRAINING")


def load_captioner(artifact: Artifact, device: torch.device) -> CaptionerModel:
    """Open a captioner of any kind for prediction.

    Raises:
        ArtifactError: the artifact is not a captioner, or its files are damaged.
        ModelError: the language model inside is damaged.
    """
    kind = read_config(artifact)["kind"]
    captioner_class = resolve_name(f"{CAPTIONERS[kind].package}.model:CAPTIONER")
    captioner: CaptionerModel = captioner_class.load(artifact.folder, device)
    return captioner


def read_config(artifact: Artifact) -> dict[str, Any]:
    """Return the ``config.json`` of a captioner.

    Raises:
        ArtifactError: the artifact is not a captioner, or the file is damaged.
    """
    if artifact.kind != "captioner":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}: give a captioner here")
    require_depth(artifact.folder)
    with damage_named(artifact.folder):
        config: dict[str, Any] = json.loads(artifact.path(CONFIG).read_text(encoding="utf-8"))
        config["trained_on"]["encoder"]
        CAPTIONERS[config["kind"]]
    return config


def save_parts(
    folder: Path, captioner: CaptionerModel, kind: str, settings: Mapping[str, Any]
) -> None:
    """Write the files that captioners of every kind have.

    Args:
        folder: The captioner's folder.
        captioner: The captioner.
        kind: Its name in :data:`CAPTIONERS`.
        settings: What else its ``load`` needs to build it again.
    """
    captioner.language.save(folder / LANGUAGE_MODEL)
    weights = captioner.mapper.state_dict().items()
    write_bytes(folder / MAPPER, save({name: w.cpu().contiguous() for name, w in weights}))
    described = {
        "kind": kind,
        "mapper": dict(captioner.mapper_settings),
        "trained_on": dict(captioner.identity),
    }
    write_json(folder / CONFIG, {**settings, **described})


def load_mapper(mapper: nn.Module, folder: Path) -> None:
    """Read the mapper's weights out of a captioner's folder.

    Raises:
        ArtifactError: they are damaged.
        ModelError: they hold NaN.
    """
    with damage_named(folder):
        tensors = load_file(folder / MAPPER)
        require_finite(tensors.items(), folder / MAPPER, "train the captioner again")
        mapper.load_state_dict(tensors)


def damage_named(folder: Path) -> AbstractContextManager[None]:
    """Name the captioner's folder in errors of damaged files.

    Raises:
        ArtifactError: a file that the block reads is damaged.
    """
    return damage_explained(folder, ArtifactError, "train the captioner again")
