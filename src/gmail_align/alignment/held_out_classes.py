"""Classes of held-out images: zero-shot classification, and what a probe carries over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, damage_explained
from gmail_align.metrics.class_accuracy import class_weights, zeroshot_hits
from gmail_align.metrics.transfer import class_transfer

_IMAGES_A_CLASS = 2
"""Captions are taken for names of classes where each stands for this many images on average."""


@dataclass(frozen=True)
class HeldOutClasses:
    """The classes of the held-out real images."""

    labels: Int64[Tensor, " m"]
    """The class of each image; -1 where it has none."""
    prompts: tuple[tuple[str, ...], ...]
    """Of each class."""
    features: Float[Tensor, "classes d"] | None
    """One row a class, by the frozen text tower; None without one."""
    learnt: Int64[Tensor, " k"] | None = None
    """The class of each training pair whose generated image a probe learns from too."""

    def of_first(self, count: int) -> HeldOutClasses:
        """Return the classes of the first images; the others are those of training pairs."""
        return replace(self, labels=self.labels[:count], learnt=self.labels[count:])


def find_classes(
    encoder: GmailEncoder,
    images: Sequence[str],
    captions: Sequence[tuple[str, str]],
    artifact: Artifact | None = None,
) -> HeldOutClasses | None:
    """Return what is known of the classes of held-out images; None where it is nothing.

    Without ``artifact``, captions stand for classes where every image has one caption that many
    images share, as those of class folders do.

    Args:
        encoder: Whose text tower is used.
        images: Ids of the m held-out real images.
        captions: Image id and text of each of their pairs.
        artifact: Labels and prompts, as imports of class folders write them.

    Raises:
        ArtifactError: ``artifact`` is damaged.
    """
    known = _from_captions(captions) if artifact is None else _read(artifact, set(images))
    if known is None:
        return None
    labels, prompts = known
    numbers = {name: row for row, name in enumerate(prompts)}
    rows = [numbers.get(labels.get(image, ""), -1) for image in images]
    if max(rows, default=-1) < 0:
        return None
    lines = tuple(tuple(own) for own in prompts.values())
    features = _features(encoder, lines, Route.FROZEN) if encoder.has_texts else None
    return HeldOutClasses(torch.tensor(rows), lines, features)


def probe_hits(
    classes: HeldOutClasses, images: Mapping[str, Tensor], image_of: Tensor
) -> Float64[Tensor, " m"] | None:
    """Say which ``real`` images a probe gets right that learnt from ``generated`` ones.

    Args:
        classes: The classes.
        images: Features of ``real`` images (m) and of ``generated`` ones (n, of those images).
            Where it has ``learnt`` ones (k), the generated images of training pairs, the probe
            learns from them too, as whoever uses an alignment does.
        image_of: Which of the m real images each generated one belongs to.

    Returns:
        1 or 0 an image; NaN for images without a class, and for all where a feature is not finite.
        None where fewer than two classes have an image.
    """
    labels = classes.labels
    known, made = labels >= 0, labels[image_of] >= 0
    if len(labels[known].unique()) < 2:
        return None
    hits = torch.full((len(labels),), math.nan, dtype=torch.float64)
    if all(torch.isfinite(rows).all() for rows in images.values()):
        rows, classes_of = images["generated"][made], labels[image_of][made]
        if classes.learnt is not None and "learnt" in images:
            more = classes.learnt >= 0
            rows = torch.cat([rows, images["learnt"][more]])
            classes_of = torch.cat([classes_of, classes.learnt[more]])
        hits[known] = class_transfer(rows, classes_of, images["real"][known], labels[known])
    return hits


@torch.no_grad()
def zero_shot_hits(
    encoder: GmailEncoder, classes: HeldOutClasses, images: Mapping[str, Tensor], image_of: Tensor
) -> dict[str, Tensor]:
    """Return each image's probability of being classified right, for ``real`` and ``generated``.

    Args:
        encoder: Whose text tower is used as it is now.
        classes: The classes.
        images: Features of ``real`` images (m) and of ``generated`` ones (n, of those images).
        image_of: Which of the m real images each generated one belongs to.

    Returns:
        NaN for images without a class, and for all images where a feature is not finite.
    """
    weights = classes.features
    if encoder.adapts_texts:
        weights = _features(encoder, classes.prompts, Route.REAL)
    assert weights is not None, "zero-shot classification needs a text tower"
    labels = {"real": classes.labels, "generated": classes.labels[image_of]}
    return {name: _hits(rows, labels[name], weights) for name, rows in images.items()}


def _hits(images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    known = labels >= 0
    hits = torch.full((len(images),), math.nan)
    if torch.isfinite(images).all():  # the guard's score is NaN otherwise
        hits[known] = zeroshot_hits(images[known], labels[known], weights).float()
    return hits


@torch.no_grad()
def _features(
    encoder: GmailEncoder, prompts: Sequence[Sequence[str]], route: Route
) -> Float[Tensor, "classes d"]:
    rows = [encoder.embed_texts(list(own), route).float().cpu() for own in prompts]
    return torch.cat([class_weights(own[None]) for own in rows])


def _from_captions(
    captions: Sequence[tuple[str, str]],
) -> tuple[dict[str, str], dict[str, list[str]]] | None:
    labels: dict[str, str] = {}
    for image, text in captions:
        if labels.setdefault(image, text) != text:
            return None
    texts = sorted(set(labels.values()))
    if len(texts) < 2 or len(texts) * _IMAGES_A_CLASS > len(labels):
        return None
    return labels, {text: [text] for text in texts}


def _read(artifact: Artifact, wanted: set[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read the labels of ``wanted`` images and the prompts of every class."""
    with damage_explained(artifact.folder, ArtifactError, "import it again"):
        labels = json.loads(artifact.path("labels.json").read_text(encoding="utf-8"))
        prompts = json.loads(artifact.path("classes.json").read_text(encoding="utf-8"))
        kept = {name: str(label) for name, label in labels.items() if name in wanted}
        lines = {str(name): [str(text) for text in own] for name, own in prompts.items()}
    for name, own in lines.items():
        if not own:
            raise ArtifactError(
                f"class {name!r} of {artifact.path('classes.json')} does not have a prompt: add one"
            )
    return kept, lines
