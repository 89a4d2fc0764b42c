"""Zero-shot classification of held-out images, wherever the names of their classes are known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.data.pairs import Pair
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError
from gmail_align.metrics.zeroshot import class_weights, zeroshot_hits

_IMAGES_A_CLASS = 2
"""Captions are taken for names of classes where each stands for this many images on average."""


@dataclass(frozen=True)
class HeldClasses:
    """The classes of the held-out real images."""

    labels: Int64[Tensor, " m"]
    """The class of each image; -1 where it has none."""
    prompts: tuple[tuple[str, ...], ...]
    """Of each class, equally many."""
    features: Float[Tensor, "classes d"]
    """One row a class, by the frozen text tower."""


def held_classes(
    encoder: GmailEncoder,
    image_ids: Sequence[str],
    held: Sequence[Pair],
    classes: Artifact | None = None,
) -> HeldClasses | None:
    """Return what is known of the classes of held-out images; None where it is nothing.

    Without ``classes``, captions stand for classes where every image has one caption that many
    images share, as those of class folders do.

    Args:
        encoder: Whose text tower is used.
        image_ids: The m held-out real images.
        held: Their pairs.
        classes: Labels and prompts, as imports of class folders write them.

    Raises:
        ArtifactError: ``classes`` is damaged.
    """
    if not encoder.has_texts:
        return None
    found = _from_captions(held) if classes is None else _from_artifact(classes, set(image_ids))
    if found is None:
        return None
    labels, prompts = found
    names = {name: row for row, name in enumerate(prompts)}
    numbers = [names.get(labels.get(image, ""), -1) for image in image_ids]
    if max(numbers, default=-1) < 0:
        return None
    lines = tuple(tuple(own) for own in prompts.values())
    return HeldClasses(torch.tensor(numbers), lines, _features(encoder, lines, Route.FROZEN))


@torch.no_grad()
def zero_shot(
    encoder: GmailEncoder, classes: HeldClasses, images: Mapping[str, Tensor], image_of: Tensor
) -> dict[str, float]:
    """Return the accuracy of ``real`` images (m) and of ``generated`` ones (n, of those images).

    Args:
        encoder: Whose text tower is used as it is now.
        classes: The classes.
        images: ``real`` and ``generated`` features.
        image_of: Which of the m real images each generated one belongs to.
    """
    weights = classes.features
    if encoder.adapts_texts:
        weights = _features(encoder, classes.prompts, Route.REAL)
    labels = {"real": classes.labels, "generated": classes.labels[image_of]}
    return {
        f"zeroshot{'' if name == 'real' else '_' + name}": _accuracy(rows, labels[name], weights)
        for name, rows in images.items()
    }


def _accuracy(images: Tensor, labels: Tensor, weights: Tensor) -> float:
    known = labels >= 0
    if not torch.isfinite(images).all():
        return math.nan  # the guard's score says so
    return float(zeroshot_hits(images[known], labels[known], weights).mean())


@torch.no_grad()
def _features(
    encoder: GmailEncoder, prompts: Sequence[Sequence[str]], route: Route
) -> Float[Tensor, "classes d"]:
    rows = [encoder.embed_texts(list(own), route).float().cpu() for own in prompts]
    return class_weights(torch.stack(rows))


def _from_captions(held: Sequence[Pair]) -> tuple[dict[str, str], dict[str, list[str]]] | None:
    labels: dict[str, str] = {}
    for pair in held:
        if labels.setdefault(pair.real_image_id, pair.text) != pair.text:
            return None
    texts = sorted(set(labels.values()))
    if len(texts) < 2 or len(texts) * _IMAGES_A_CLASS > len(labels):
        return None
    return labels, {text: [text] for text in texts}


def _from_artifact(
    classes: Artifact, wanted: set[str]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    try:
        labels = json.loads(classes.path("labels.json").read_text(encoding="utf-8"))
        prompts = json.loads(classes.path("classes.json").read_text(encoding="utf-8"))
        kept = {name: str(label) for name, label in labels.items() if name in wanted}
        return kept, {str(name): [str(text) for text in own] for name, own in prompts.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{classes.folder} is damaged ({error}): import it again") from error
