"""What the alignment of features reads: rows of both sides, and which of them belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from gmail_align.artifacts import Artifact, load
from gmail_align.data.json_files import file_fingerprint
from gmail_align.data.labels import class_order, open_labels
from gmail_align.data.npy import read_integer_rows
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.store import Features, open_features
from gmail_align.runtime import stable_seed

FEWEST = 4
"""Real images, or pairs, below which nothing can be learnt and judged."""


@dataclass(frozen=True)
class FeatureSources:
    """Where features come from, and what is known of their rows.

    Attributes:
        real: Features of real images: a .npy file, or an artifact.
        generated: Features of generated images by the same encoder.
        pairs: Rows of both sides that share a caption: integers (pairs, 2), real row first.
        real_classes: The class of each real row, one on each line.
        generated_classes: The class of each generated row, one on each line.
        texts: Features of texts by the same encoder: one a pair, or one a class by name.
    """

    real: Path | Artifact
    generated: Path | Artifact
    pairs: Path | None = None
    real_classes: Path | None = None
    generated_classes: Path | None = None
    texts: Path | None = None

    def inputs(self) -> dict[str, Artifact | str]:
        """Return the fingerprint of each source, by its role."""
        given = {role: one for role, one in vars(self).items() if one is not None}
        return {role: _identity(one) for role, one in given.items()}


@dataclass(frozen=True)
class Groups:
    """Which rows belong together: those of one class, or a real image and its generated ones.

    Attributes:
        real: (n,) The group of each real row.
        generated: (m,) The group of each generated row.
        classes: Names of the groups; None where they are pairs.
        texts: (m,) The text of each generated row, -1 where it has none; None without texts.
    """

    real: Int64[Tensor, " n"]
    generated: Int64[Tensor, " m"]
    classes: Sequence[str] | None = None
    texts: Int64[Tensor, " m"] | None = None

    @property
    def shared(self) -> Int64[Tensor, " g"]:
        """Groups that both sides have."""
        ours = self.real.unique()
        both: Int64[Tensor, " g"] = ours[torch.isin(ours, self.generated) & (ours >= 0)]
        return both

    @property
    def generated_alone(self) -> list[str]:
        """Classes of generated images that no real image has."""
        missing = self.generated[~torch.isin(self.generated, self.real)].unique()
        return [] if self.classes is None else [self.classes[int(row)] for row in missing]

    def folds(self, count: int, seed: int, *, whole: bool) -> Int64[Tensor, " n"]:
        """Return the fold of each real row, -1 where its group is on one side alone.

        Args:
            count: Most folds; there are no more than groups, or than images of the largest group.
            seed: Of the deal.
            whole: Keep groups whole; else each group's images are dealt out over all folds.

        Raises:
            DataError: there are too few images or groups.
        """
        rng = np.random.default_rng(stable_seed(seed, "folds"))
        order = torch.from_numpy(rng.permutation(len(self.real)))
        fold, dealt = torch.full_like(self.real, -1), 0
        groups = self.shared
        if whole:
            least = 2 if self.classes is None else 4
            if len(groups) < least:
                raise DataError(
                    f"{len(groups)} {'pairs' if self.classes is None else 'classes'} are on both "
                    f"sides: at least {least} are needed to hold some out"
                )
            count = min(count, len(groups) // (1 if self.classes is None else 2))
            deal = torch.from_numpy(rng.permutation(len(groups))) % count
            return torch.where(
                torch.isin(self.real, groups), deal[_places(self.real, groups)], fold
            )
        count = min(count, int(torch.bincount(self.real)[groups].max()))
        if count < 2:
            raise DataError("each class has one real image: give more of them")
        for group in groups:
            rows = order[self.real[order] == group]
            fold[rows] = (torch.arange(len(rows)) + dealt) % count
            dealt += len(rows)
        return fold

    def trained_on(self, rows: Bool[Tensor, " n"]) -> Int64[Tensor, " k"]:
        """Return the generated rows whose group has one of these real rows."""
        return torch.isin(self.generated, self.real[rows].unique()).nonzero()[:, 0]


@dataclass(frozen=True)
class FeatureTask:
    """Rows of both sides, their groups and the features of texts."""

    real: Features
    generated: Features
    groups: Groups
    texts: Features | None = None


def open_task(sources: FeatureSources) -> FeatureTask:
    """Open features and read what joins their rows.

    Raises:
        ConfigError: neither pairs nor classes are given, or both.
        DataError: a file cannot be used, or its rows do not fit the others'.
    """
    real, generated = open_features(sources.real), open_features(sources.generated)
    texts = None if sources.texts is None else open_features(sources.texts)
    widths = {one.name: one.array.shape[1] for one in (real, generated, texts) if one is not None}
    if len(set(widths.values())) > 1:
        told = " and ".join(f"{name} {width}" for name, width in widths.items())
        raise DataError(f"features have different widths ({told}): use one encoder for all")
    labels = sources.real_classes, sources.generated_classes
    if sources.pairs is not None and not any(labels):
        groups = _by_pair(sources.pairs, real, generated, texts)
    elif sources.pairs is None and labels[0] is not None and labels[1] is not None:
        groups = _by_class(labels[0], labels[1], real, generated, texts)
    else:
        raise ConfigError(
            "say what joins the two sides: --pairs, or --real-classes and --generated-classes"
        )
    return FeatureTask(real, generated, groups, texts)


def _by_class(
    real_file: Path,
    generated_file: Path,
    real: Features,
    generated: Features,
    texts: Features | None,
) -> Groups:
    """Read classes; names are compared as they are written."""
    named = [
        open_labels(path).of(one.ids)
        for path, one in ((real_file, real), (generated_file, generated))
    ]
    names = class_order(name for side in named for name in side)
    place = {name: number for number, name in enumerate(names)}
    rows = [torch.tensor([place[name] for name in side], dtype=torch.int64) for side in named]
    groups = Groups(rows[0], rows[1], names, None if texts is None else rows[1])
    if len(groups.shared) < 2:
        raise DataError(
            f"{real_file} and {generated_file} share {len(groups.shared)} classes, and two are "
            "needed: check their names"
        )
    _require_texts(texts, len(names), "class by name")
    return groups


def _by_pair(pairs: Path, real: Features, generated: Features, texts: Features | None) -> Groups:
    rows = read_integer_rows(pairs)
    if rows.shape[1] != 2:
        raise DataError(f"{pairs} has {rows.shape[1]} columns: real row and generated row")
    if len(rows) < FEWEST:
        raise DataError(f"{pairs} holds {len(rows)} pairs: at least {FEWEST} are needed")
    for column, one in zip(rows.T, (real, generated), strict=True):
        outside = column[(column < 0) | (column >= len(one.ids))]
        if len(outside):
            raise DataError(
                f"{pairs} names row {outside[0]} of {one.name}, which has {len(one.ids)} rows"
            )
    twice = len(rows) - len(np.unique(rows[:, 1]))
    if twice:
        raise DataError(f"{pairs} pairs {twice} generated rows more than once: pair each once")
    _require_texts(texts, len(rows), "pair")
    ours = torch.full((len(real.ids),), -1)
    theirs = torch.full((len(generated.ids),), -2)  # never equal to a real row without a pair
    text = torch.full((len(generated.ids),), -1)
    place = torch.from_numpy(rows)
    ours[place[:, 0]] = place[:, 0]
    theirs[place[:, 1]] = place[:, 0]
    text[place[:, 1]] = torch.arange(len(rows))
    return Groups(ours, theirs, None, None if texts is None else text)


def _require_texts(texts: Features | None, count: int, each: str) -> None:
    """Check that there is one text for each pair or class."""
    if texts is not None and len(texts.ids) != count:
        raise DataError(f"{texts.name} holds {len(texts.ids)} texts: give {count}, one a {each}")


def _identity(source: Path | Artifact) -> Artifact | str:
    if isinstance(source, Path):
        return load(source) if source.is_dir() else file_fingerprint(source)
    return source


def _places(values: Int64[Tensor, " n"], known: Int64[Tensor, " g"]) -> Int64[Tensor, " n"]:
    """Return the place of each value among sorted ones; any place where it is not one of them."""
    return torch.searchsorted(known, values).clamp(max=len(known) - 1)
