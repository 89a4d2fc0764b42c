"""Zero-shot classification: images against prompts of the names of their classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.data.labels import Labels, class_numbers, known_set
from gmail_align.data.npy import read_floats
from gmail_align.data.protocols import headline
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import parse_route
from gmail_align.errors import DataError
from gmail_align.features.store import Features, open_features
from gmail_align.items import Items
from gmail_align.metrics.bootstrap import Estimate, Values
from gmail_align.metrics.class_accuracy import (
    accuracy_columns,
    accuracy_estimates,
    class_weights,
    zeroshot_hits,
)
from gmail_align.metrics.statistics import Column
from gmail_align.results import Result, begin_result


@dataclass(frozen=True)
class ClassFeatures:
    """Text features of every prompt of every class.

    Attributes:
        names: The classes in their order.
        prompts: (classes, prompts, dim), any length.
        made_with: ``what``, ``encoder``, ``weights`` and ``route``, as far as known.
        name: Where they come from, for messages.
    """

    names: Sequence[str]
    prompts: Float32[Tensor, "c p d"]
    made_with: Mapping[str, str] = field(default_factory=dict)
    name: str = "class features"

    @property
    def fingerprint(self) -> str:
        """Identity of the numbers."""
        digest = hashlib.sha256(self.prompts.numpy().tobytes()).hexdigest()[:16]
        return f"{'x'.join(map(str, self.prompts.shape))}-{digest}"


def read_class_features(path: Path) -> ClassFeatures:
    """Read floats of shape (classes, dim) or (classes, prompts, dim); classes are row numbers.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    array = read_floats(path, axes=(2, 3))
    prompts = array if array.ndim == 3 else array[:, None]
    return ClassFeatures(list(map(str, range(len(prompts)))), prompts, name=str(path))


def embed_classes(
    encoder: GmailEncoder, prompts: Mapping[str, Sequence[str]], images: Path | Artifact
) -> ClassFeatures:
    """Embed the prompts of each class by the route that image features went through.

    Args:
        encoder: The encoder of the images, on the device where it shall run.
        prompts: Class -> its prompts, equally many each.
        images: The image features.

    Raises:
        DataError: the images are features of other weights than this encoder's.
        ModelError: the encoder does not have a usable tokenizer.
    """
    seen = open_features(images)
    route = seen.made_with.get("route", "real")
    _require_weights(encoder, seen, route)
    encoder.tell_cut([text for own in prompts.values() for text in own])
    rows = torch.stack([encoder.encode_texts(list(own), route) for own in prompts.values()])
    made_with = {
        "what": "text",
        "encoder": encoder.base_fingerprint,
        "weights": encoder.text_fingerprint(parse_route(route)),
        "route": route,
    }
    return ClassFeatures(list(prompts), rows, made_with, "the class prompts")


def score(
    images: Float[Tensor, "n d"], labels: Sequence[int], classes: Float[Tensor, "c p d"]
) -> Values:
    """Return each image's probability of being classified right, ties broken at random.

    Args:
        images: Features, any length.
        labels: Row in ``classes`` of each image's class.
        classes: Features of the prompts of each class.

    Raises:
        UserError: features cannot be compared, or a label is out of range.
    """
    wanted = torch.tensor(labels, dtype=torch.int64)
    hits: Values = zeroshot_hits(images, wanted, class_weights(classes)).numpy()
    return hits


def accuracy_of(
    hits: Values, labels: Sequence[int], *, seed: int
) -> tuple[dict[str, Estimate], dict[str, Column]]:
    """Return ``accuracy`` and ``class_mean`` of hits, and what every image adds to each."""
    numbers = np.asarray(labels, dtype=np.int64)
    return accuracy_estimates(hits, numbers, seed=seed), accuracy_columns(hits, numbers)


def evaluate_zeroshot(
    images: Path | Artifact,
    labels: Labels,
    classes: ClassFeatures,
    out: Path | None = None,
    *,
    protocol: str = "zeroshot",
    subset: bool = False,
    seed: int = 0,
) -> Result:
    """Score zero-shot classification of the labelled images.

    Args:
        images: Image features: an artifact, or a ``.npy`` file.
        labels: The class of each image, by a name that the classes or the protocol's set know.
        classes: Features of every prompt of every class; each class's prompts are averaged.
        out: Folder of the result; None keeps nothing.
        protocol: Name kept with the numbers; that of a known protocol (``oxford_pets``) asserts its
            counts, and the result's ``headline`` names the metric that its field reports.
        subset: Whether the images are declared a part of that protocol's.
        seed: Of the bootstrap.

    Raises:
        DataError: an image does not have a feature, a class is not listed, the features are of
            different encoders, or the counts are not the protocol's.
        UserError: features are not finite or of different width.
    """
    seen = open_features(images)
    spelled = class_numbers(labels, classes.names, known_set(protocol, classes.names))
    place = {name: row for row, name in enumerate(classes.names)}
    ids = list(seen.ids) if labels.by_row else list(spelled.classes)
    result = begin_result(
        out,
        {"images": seen, "labels": spelled, "classes": classes},
        {},
        protocol=protocol,
        task="zeroshot",
        n={"images": len(ids), "classes": len(classes.names)},
        subset=subset,
        seed=seed,
    )
    if result.complete is not None:
        return result.complete
    wanted = [place[name] for name in spelled.of(ids)]
    hits = score(seen.array[seen.rows(ids)], wanted, classes.prompts)
    metrics, columns = accuracy_of(hits, wanted, seed=seed)
    items = {"": Items(result.protocol, tuple(ids), columns)}
    return result.finish(metrics, items=items, details=headline(protocol))


def _require_weights(encoder: GmailEncoder, images: Features, route: str) -> None:
    """Check that an encoder with a text tower of its own is the one that made the images."""
    known = images.made_with.get("weights")
    if not known or not encoder.adapts_texts:
        return
    if known != encoder.route_fingerprint(parse_route(route)):
        raise DataError(
            f"{images.name} holds features of other weights than those of this encoder by the "
            f"route {route!r}: extract them with it, or name their encoder"
        )
