"""Features of real or of generated images, and what is known of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmail_align.artifacts import fingerprint
from gmail_align.data import batches
from gmail_align.data.ids import key_id
from gmail_align.errors import DataError
from gmail_align.features.store import Features
from gmail_align.runtime import stable_seed


@dataclass(frozen=True)
class FeatureSet:
    """Features of real or of generated images.

    Attributes:
        features: (n, d), any length.
        classes: class of each image, where images have classes.
        generators: what made each image, where that is known.
    """

    features: Float[Tensor, "n d"]
    classes: Sequence[str] | None = None
    generators: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check that every image has its labels.

        Raises:
            DataError: there are more or fewer labels than images.
        """
        for what in ("classes", "generators"):
            labels = getattr(self, what)
            if labels is not None and len(labels) != len(self.features):
                raise DataError(
                    f"{len(labels)} {what} were given for {len(self.features)} images: one each"
                )

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: Int[Tensor, " k"]) -> FeatureSet:
        """Return the set with only these rows, in this order."""
        places = rows.tolist()
        kept = {
            what: None if labels is None else [labels[place] for place in places]
            for what, labels in (("classes", self.classes), ("generators", self.generators))
        }
        return replace(self, features=self.features[rows], **kept)

    def rows_of(self, what: str, name: str) -> Int[Tensor, " k"]:
        """Return the rows whose class or generator (``what``) is ``name``."""
        labels = getattr(self, what) or ()
        return torch.tensor(
            [row for row, own in enumerate(labels) if own == name], dtype=torch.int64
        )


@dataclass(frozen=True)
class Annotations:
    """What is known of images besides their features.

    Attributes:
        real_classes: real image id -> class.
        generated_classes: generated image id -> class.
        generators: generated image id -> what made it.
        texts: features of captions, or of prompts whose ids are those of the classes
            (:func:`gmail_align.data.ids.key_id`).
        captions: caption id of each pair; None where ``texts`` are of classes or of images.
        real_texts: real image id -> caption id, where captions lie beside images.
        generated_texts: generated image id -> caption id.
    """

    real_classes: Mapping[str, str] = field(default_factory=dict)
    generated_classes: Mapping[str, str] = field(default_factory=dict)
    generators: Mapping[str, str] = field(default_factory=dict)
    texts: Features | None = None
    captions: Sequence[str] | None = None
    real_texts: Mapping[str, str] = field(default_factory=dict)
    generated_texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str | None:
        """Identity of the labels; None where nothing is known."""
        known = [self.real_classes, self.generated_classes, self.generators, self.captions]
        known += [self.real_texts, self.generated_texts]
        if not any(known):
            return None
        return fingerprint(
            [one and (list(one) if isinstance(one, Sequence) else dict(one)) for one in known]
        )


def class_texts(known: Annotations, texts: Features, pairs: int | None) -> Annotations:
    """Add the texts of a plain file: one a pair, or one a class in the order of their names.

    Args:
        known: The classes.
        texts: A row a text.
        pairs: How many pairs there are; None without pairs.

    Raises:
        DataError: there are more or fewer texts than pairs or classes, or neither is given.
    """
    names = sorted({*known.real_classes.values(), *known.generated_classes.values()})
    if pairs is None and not (known.real_classes and known.generated_classes):
        raise DataError(f"{texts.name} needs pairs or classes to say whose text each row is")
    ids = list(map(key_id, names) if pairs is None else map(str, range(pairs)))
    if len(texts.ids) != len(ids):
        what = "classes" if pairs is None else "pairs"
        raise DataError(
            f"{texts.name} holds {len(texts.ids)} texts for {len(ids)} {what}: one each is needed"
        )
    return replace(known, texts=replace(texts, ids=ids), captions=None if pairs is None else ids)


def class_numbers(
    real: FeatureSet, generated: FeatureSet
) -> tuple[Tensor, Tensor, list[str]] | None:
    """Return both sets' classes as numbers, and their names; None where a set has no classes."""
    if real.classes is None or generated.classes is None:
        return None
    names = sorted({*real.classes, *generated.classes})
    place = {name: number for number, name in enumerate(names)}
    first, second = (
        torch.tensor([place[name] for name in labels], dtype=torch.int64)
        for labels in (real.classes, generated.classes)
    )
    return first, second, names


def sample_rows(count: int, wanted: int, seed: int, what: str) -> Int[Tensor, " k"]:
    """Draw at most ``wanted`` of ``count`` rows without replacement, in their order.

    All rows come where there are no more; ``what`` keeps the draws of one seed apart.
    """
    return torch.from_numpy(batches.sample_rows(count, wanted, stable_seed(seed, "gap", what)))


def sampled(
    first: int, second: int, paired: bool, most: int, seed: int
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Draw the rows of both sets that are looked at, equally many."""
    if paired:
        rows = sample_rows(first, most, seed, "pairs")
        return rows, rows
    count = min(first, second, most)
    return sample_rows(first, count, seed, "real"), sample_rows(second, count, seed, "generated")
