"""The loss terms of alignment: a term is a value, and everything else loops over terms.

To add one: write its loss (in a file of its own where it is long), add it to :data:`TERMS`, and
give it a weight in :class:`~gmail_align.alignment.config.AlignWeights`. Batches, gradient caching,
several processes and the guard then treat it like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from jaxtyping import Float, Int64
from torch import Tensor

from gmail_align.alignment.config import AlignConfig, AlignWeights
from gmail_align.alignment.losses import (
    Direction,
    alignment_losses,
    distillation_losses,
    norm_losses,
)
from gmail_align.encoders.config import TextKind
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.training.losses import (
    Positives,
    contrastive_text_losses,
    long_short_losses,
    sigmoid_text_losses,
)

Features = Mapping[str, Tensor]
"""Features of pairs, row by row, by the names that :attr:`Term.needs` explains."""


@dataclass(frozen=True)
class Comparison:
    """How the pairs of a batch are compared: what all loss terms share."""

    groups: Int64[Tensor, "b 3"]
    """Numbers of each pair's real image, its text, and the text's first sentence. Pairs that agree
    in one of them are not negatives of each other."""
    temperature: Float[Tensor, ""] | float
    """Of Eq. 1."""
    text_kind: TextKind
    """How images are compared with texts."""
    scale: Float[Tensor, ""] | float
    """The inverse temperature of the text terms: the base model's own."""
    bias: Float[Tensor, ""] | float = 0.0
    """What a SigLIP adds to scaled cosines."""
    direction: Direction = "g2r"
    positives: Positives = "mask"
    chunk: int | None = None
    """Rows that are compared at a time; all of them when None."""

    def eased(self, factor: float) -> Comparison:
        """Return the comparison with every temperature multiplied by ``factor``."""
        return replace(
            self,
            temperature=self.temperature * factor,
            scale=self.scale / factor,
            bias=self.bias / factor,
        )


def comparison(
    encoder: GmailEncoder,
    groups: Int64[Tensor, "b 3"],
    config: AlignConfig,
    temperature: Float[Tensor, ""] | float | None = None,
) -> Comparison:
    """Return what the settings ask for, with the base model's own scale, bias and text loss.

    Args:
        encoder: The encoder.
        groups: Numbers of each pair's real image, text and first sentence.
        config: The settings.
        temperature: The temperature of Eq. 1; the configured one when None.
    """
    return Comparison(
        groups,
        config.temperature if temperature is None else temperature,
        config.text_loss or encoder.backbone.text_kind,
        encoder.logit_scale,
        encoder.backbone.logit_bias,
        config.direction,
        config.positives,
        config.loss_chunk,
    )


@dataclass(frozen=True)
class Term:
    """One loss term: what it reads, and how it is computed."""

    name: str
    """Name of its weight, and of its column in the event log."""
    needs: frozenset[str]
    """The features that it reads, by name. ``generated``: generated images by the ``generated``
    route. ``real``: real images by the ``real`` route. ``frozen``: frozen features of real images.
    ``target``: real images by the route of Eq. 1's target; the guard's are frozen.
    ``patches``: means of the patch tokens of generated images. ``frozen_patches``: the same of
    real images, frozen. ``texts``: captions. ``short``: their first sentences."""
    losses: Callable[[Features, Comparison], Tensor]
    """Features -> one value a pair; the loss is their mean."""
    contrastive: bool = field(default=False, kw_only=True)
    """Whether a temperature plays a part."""


def _align(features: Features, how: Comparison) -> Tensor:
    return _eq1(features["generated"], features["target"], how, how.direction)


def _patch(features: Features, how: Comparison) -> Tensor:
    return _eq1(features["patches"], features["frozen_patches"], how, "g2r")


def _eq1(generated: Tensor, real: Tensor, how: Comparison, direction: Direction) -> Tensor:
    return alignment_losses(
        generated,
        real,
        temperature=how.temperature,
        same=how.groups[:, :2],
        positives=how.positives,
        direction=direction,
        chunk=how.chunk,
    )


def _text(images: str) -> Callable[[Features, Comparison], Tensor]:
    """Return the losses between images of one kind and texts, by the settings' text loss."""

    def losses(features: Features, how: Comparison) -> Tensor:
        rows, texts, same = features[images], features["texts"], how.groups[:, :2]
        if how.text_kind == "long_short":
            short = how.groups[:, ::2]
            return long_short_losses(
                rows, texts, features["short"], how.scale, same=short, same_long=same
            )["total"]
        if how.text_kind == "sigmoid":
            return sigmoid_text_losses(
                rows, texts, how.scale, how.bias, same, positives=how.positives, chunk=how.chunk
            )
        return contrastive_text_losses(rows, texts, how.scale, same, how.positives, how.chunk)

    return losses


def _needs(*names: str) -> frozenset[str]:
    return frozenset(names)


TERMS: Final = (
    Term("align", _needs("generated", "target"), _align, contrastive=True),
    Term("text_generated", _needs("generated", "texts"), _text("generated"), contrastive=True),
    Term("text_real", _needs("real", "texts"), _text("real"), contrastive=True),
    Term(
        "distill_real",
        _needs("real", "frozen"),
        lambda features, how: distillation_losses(features["real"], features["frozen"]),
    ),
    Term(
        "distill_generated",
        _needs("generated", "frozen"),
        lambda features, how: distillation_losses(features["generated"], features["frozen"]),
    ),
    Term(
        "norm",
        _needs("generated", "frozen"),
        lambda features, how: norm_losses(features["generated"], features["frozen"]),
    ),
    Term("patch", _needs("patches", "frozen_patches"), _patch, contrastive=True),
)
"""Every loss term, in the order in which they are computed and logged."""


def active_terms(weights: AlignWeights) -> dict[Term, float]:
    """Return the terms whose weight is not 0, with their weights."""
    every = {term: float(getattr(weights, term.name)) for term in TERMS}
    return {term: weight for term, weight in every.items() if weight > 0}


def needed_features(config: AlignConfig) -> frozenset[str]:
    """Return the features that training by these settings reads."""
    terms = active_terms(config.weights)
    names = frozenset({"generated"}).union(*(term.needs for term in terms))
    if "target" in names:
        names = names - {"target"} | {config.target}
    return names | {"short"} if "texts" in names and config.text_loss == "long_short" else names


def trains_real_head(config: AlignConfig) -> bool:
    """Whether real images go through their head in training."""
    return not needed_features(config).isdisjoint({"real", "real_head"})
