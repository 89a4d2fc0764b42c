"""The images of a gap's page: typical, nearest and farthest ones of each class, and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmail_align.data.images import ImageStore
from gmail_align.features.store import Features, open_features
from gmail_align.report.data import Embeddings, PairFigure
from gmail_align.report.images import data_uri
from gmail_align.report.projection import unit_rows

if TYPE_CHECKING:
    from gmail_align.gap.prepare import Prepared

MOST_CLASSES: Final = 8
MOST_PAIRS: Final = 300
_LONGEST: Final = 160


@dataclass(frozen=True)
class GapSide:
    """One side of a gap, and what is known of its images by their ids."""

    features: Features
    images: ImageStore | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    generators: Mapping[str, str] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)

    def read(self, image: str) -> bytes:
        """Return the file of an image; the side has images."""
        assert self.images is not None
        return self.images.read_bytes(image)


@dataclass(frozen=True)
class GapImages:
    """The images of both sides, and which of them are pairs: (real id, generated id)."""

    real: GapSide
    generated: GapSide
    pairs: Sequence[tuple[str, str]] = ()
    encoder: str = ""
    """Name of the encoder, as a person wrote it."""


def sides_of(made: Prepared) -> tuple[GapSide, GapSide]:
    """Return both sides of a gap that was prepared."""
    known, stores = made.known, (made.real_images, made.generated_images)
    real, generated = (None if images is None else ImageStore(images) for images in stores)
    captions = made.captions
    first = GapSide(open_features(made.real), real, known.real_classes, {}, captions[0])
    features, classes = open_features(made.generated), known.generated_classes
    return first, GapSide(features, generated, classes, known.generators, captions[1])


class Picture(NamedTuple):
    """One image as an address, what it stands for, and its cosine to the mean real image."""

    what: str
    address: str
    cosine: str


class ClassPictures(NamedTuple):
    """The images that stand for a class."""

    name: str
    real: list[Picture]
    generated: list[Picture]


def class_pictures(
    images: GapImages, real: Embeddings, generated: Embeddings, order: Sequence[str]
) -> list[ClassPictures]:
    """Choose images that show what the numbers say of each class.

    Every cosine is that to the mean of the class's real images, features scaled to length one.

    Args:
        images: The images behind the rows.
        real: (n, d) features of real images.
        generated: (m, d) features of generated images.
        order: Classes in the order to show them; of images without classes, all are one.

    Raises:
        DataError: an image cannot be read.
    """
    names = order if images.real.classes and images.generated.classes else ["All images"]
    shown = []
    for name in names[:MOST_CLASSES]:
        rows = [_rows_of(side, name) for side in (images.real, images.generated)]
        if not all(len(one) for one in rows):
            continue
        own = unit_rows(real[rows[0]]), unit_rows(generated[rows[1]])
        centre = own[0].mean(0)
        centre /= max(float(np.linalg.norm(centre)), 1e-12)
        scores = own[0] @ centre, own[1] @ centre
        shown.append(
            ClassPictures(
                name,
                _pictures(images.real, rows[0], scores[0], "real", ("typical",)),
                _pictures(
                    images.generated,
                    rows[1],
                    scores[1],
                    "generated",
                    ("typical", "nearest", "farthest"),
                ),
            )
        )
    return shown


def in_pairs(
    images: GapImages, real: Embeddings, generated: Embeddings
) -> tuple[list[PairFigure], Embeddings, Embeddings]:
    """Return the first pairs, and both sides' features in the order of the pairs.

    Raises:
        DataError: an image cannot be read.
    """
    sides = images.real, images.generated
    places = [{name: row for row, name in enumerate(side.features.ids)} for side in sides]
    pairs = images.pairs[:MOST_PAIRS]
    figures = [
        PairFigure(f"{first} and {second}", images.real.read(first), images.generated.read(second))
        for first, second in pairs
    ]
    rows = [[places[k][pair[k]] for pair in pairs] for k in (0, 1)]
    return figures, real[rows[0]], generated[rows[1]]


def _rows_of(side: GapSide, name: str) -> list[int]:
    """Return the rows of a class; all rows where the side has no classes."""
    return [
        row
        for row, image in enumerate(side.features.ids)
        if not side.classes or side.classes.get(image) == name
    ]


def _pictures(
    side: GapSide,
    rows: Sequence[int],
    scores: NDArray[np.float64],
    kind: str,
    wanted: Sequence[str],
) -> list[Picture]:
    order = np.argsort(-scores, kind="stable")
    places = {"nearest": order[0], "farthest": order[-1], "typical": order[len(order) // 2]}
    pictures = []
    for what in wanted:
        place = int(places[what])
        image = side.features.ids[rows[place]]
        address = data_uri(side.read(image), f"the {kind} image {image}", longest=_LONGEST)
        pictures.append(Picture(f"{kind}, {what}", address, f"{scores[place]:.3f}"))
    return pictures
