"""The captions that an IFCap looks up: texts, nouns, and features by two encoders.

    datastore/
    ├── captions.jsonl        caption id, text, nouns
    ├── texts.safetensors     text features by the encoder that the captioner reads
    ├── retrieval.safetensors the same by the encoder that looks captions up, when it is another
    └── vocabulary.txt        objects that a hard prompt may name

Feature files are hard links to the feature stores' where the file system has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from gmail_align.artifacts import Artifact, read_jsonl, write_bytes, write_jsonl
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.ifcap.entities import (
    adaptive,
    common,
    count_nouns,
    frequent,
    nouns,
    read_vocabulary,
)
from gmail_align.captioning.ifcap.retrieval import Groups, build_index, nearest, nearest_by_faiss
from gmail_align.errors import ArtifactError, DataError, damage_explained
from gmail_align.features.rows import link
from gmail_align.features.store import FEATURES, open_features
from gmail_align.progress import track

CAPTIONS, TEXTS, RETRIEVAL = "captions.jsonl", "texts.safetensors", "retrieval.safetensors"
VOCABULARY = "vocabulary.txt"


@dataclass(frozen=True)
class Datastore:
    """Captions and their features, row by row."""

    ids: list[str]
    """Caption ids."""
    texts: list[str]
    """Captions."""
    nouns: list[list[str]]
    """Nouns of each."""
    features: Float[Tensor, "n d"]
    """Text features by the encoder that the captioner reads, mapped from the file."""
    keys: Float[Tensor, "n e"]
    """Text features by the encoder that looks captions up."""
    vocabulary: frozenset[str]
    """Objects that a hard prompt may name."""
    built: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The faiss indices that were built so far, by their description."""

    def __len__(self) -> int:
        return len(self.ids)

    def look_up(
        self,
        queries: Float[Tensor, "q e"],
        k: int,
        index: str | None = None,
        apart: Groups | None = None,
        device: torch.device | None = None,
    ) -> Int[Tensor, "q k"]:
        """Return the rows of the ``k`` captions nearest to each query."""
        if index is None:
            return nearest(queries, self.keys, k, apart, device)
        if index not in self.built:
            self.built[index] = build_index(self.keys, index)
        return nearest_by_faiss(queries, self.keys, k, self.built[index], apart)

    def same_words(self) -> Int[Tensor, " n"]:
        """Number the captions so that those of the same words have one number."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(text, len(numbers)) for text in self.texts])

    def objects(self, rows: Sequence[int], config: IFCapConfig) -> list[str]:
        """Return the objects that retrieved captions agree on: entity filtering, Sec. 3.3."""
        counts = count_nouns((self.nouns[row] for row in rows), self.vocabulary)
        if config.adaptive is None:
            return frequent(counts, config.noun_count)[: config.max_nouns]
        return adaptive(counts, config.alpha, config.adaptive)[: config.max_nouns]


def write_datastore(
    folder: Path,
    captions: Mapping[str, str],
    texts: Artifact,
    retrieval: Artifact | None,
    config: IFCapConfig,
) -> None:
    """Write captions (id -> text) and link their features.

    Raises:
        DataError: features are not of captions, or not of the same ones in the same order.
        MissingExtraError: the tagger is not installed.
    """
    order = list(open_features(texts).ids)
    sources = [texts, *([retrieval] if retrieval else [])]
    for source in sources:
        if source.manifest["config"].get("what") != "text":
            raise DataError(
                f"{source.folder} does not hold features of captions: extract the captions"
            )
        if list(open_features(source).ids) != order:
            raise DataError(
                f"{source.folder} and {texts.folder} hold features of other captions, or in"
                " another order: extract both from the same captions"
            )
    if set(order) != captions.keys():
        raise DataError(
            f"{texts.folder} has features of {len(order)} captions, and {len(captions)} captions"
            " are given: extract features from the same captions"
        )
    if not (folder / CAPTIONS).exists():
        named = [nouns(captions[name]) for name in track(order, "nouns", len(order), "captions")]
        chosen = config.vocabulary
        words = read_vocabulary(chosen) if chosen else common(named, config.vocabulary_count)
        write_bytes(folder / VOCABULARY, "".join(f"{word}\n" for word in sorted(words)).encode())
        lines = zip(order, named, strict=True)
        write_jsonl(
            folder / CAPTIONS,
            [{"caption_id": name, "text": captions[name], "nouns": some} for name, some in lines],
        )
    for source, name in zip(sources, (TEXTS, RETRIEVAL), strict=False):
        link(source.path(FEATURES), folder / name)


def read_datastore(folder: Path) -> Datastore:
    """Open the captions of a captioner, features mapped.

    Raises:
        ArtifactError: files are missing or damaged.
    """
    with damage_explained(folder, ArtifactError, "train the captioner again"):
        rows = list(read_jsonl(folder / CAPTIONS))
        features = _mapped(folder / TEXTS)
        keys = _mapped(folder / RETRIEVAL) if (folder / RETRIEVAL).exists() else features
        words = (folder / VOCABULARY).read_text(encoding="utf-8").split("\n")
        if not len(rows) == len(features) == len(keys):
            raise ValueError("captions and features differ in number")
        ids, texts, named = ([row[key] for row in rows] for key in ("caption_id", "text", "nouns"))
        return Datastore(ids, texts, named, features, keys, frozenset(words) - {""})


def _mapped(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        array: Tensor = file.get_tensor("features")
    return array
