"""One batch: its inputs to features by their routes, features to loss terms, and their gradient.

A batch of any size has its exact gradient with few images in memory (GradCache, Gao et al. 2021):
embed everything without a graph, differentiate the loss by the features, then embed again part by
part and carry each part's feature gradient into the parameters. That costs one more forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.losses import distillation_losses
from gmail_align.alignment.terms import Features, active_terms, comparison
from gmail_align.alignment.tokens import embed_tokens
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.training.distributed import ranks
from gmail_align.training.loop import PiecewiseLoss

_LARGEST_SCALE = math.log(100.0)


@dataclass(frozen=True)
class Batch:
    """One training batch of b pairs."""

    inputs: Mapping[str, Tensor]
    """What goes through the encoder, by the feature that it becomes: pixels before normalisation of
    ``generated`` and ``real`` images, and of ``real_head``, real ones by the route of that name;
    tokens of ``texts`` and ``short`` ones where the text tower is trained. Rows are this process's
    part of the pairs: all b of them without other processes."""
    known: Features
    """Features of all b pairs that training does not change."""
    groups: Int64[Tensor, "b 3"]
    """Numbers of each pair's real image, its text, and the text's first sentence."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        inputs, known = (
            {name: rows.to(device, non_blocking=True) for name, rows in table.items()}
            for table in (self.inputs, self.known)
        )
        return Batch(inputs, known, self.groups.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Return the batch in memory that a GPU reads directly."""
        inputs, known = (
            {name: rows.pin_memory() for name, rows in table.items()}
            for table in (self.inputs, self.known)
        )
        return Batch(inputs, known, self.groups.pin_memory())


def loss_terms(
    encoder: GmailEncoder, batch: Batch, config: AlignConfig, log_scale: Tensor | None = None
) -> dict[str, Tensor]:
    """Return every term of non-zero weight, and ``total``, their weighted sum.

    Where frozen features are read, ``paired_cosine`` is the mean cosine of generated images and the
    frozen features of their real ones; nothing is minimised by it.

    Args:
        encoder: The encoder.
        batch: The batch, on the encoder's device.
        config: Weights and switches.
        log_scale: The learned ``ln(1 / temperature)`` of Eq. 1; the fixed temperature when None.
    """
    return terms_of(embed(encoder, batch.inputs, config), encoder, batch, config, log_scale)


def piecewise_terms(
    encoder: GmailEncoder, batch: Batch, config: AlignConfig, log_scale: Tensor | None = None
) -> PiecewiseLoss:
    """Return what :func:`loss_terms` returns, with its gradient in parts of ``micro_batch`` pairs.

    Arguments are those of :func:`loss_terms`; ``config.micro_batch`` is set.
    """
    count = len(batch.inputs["generated"])
    size = config.micro_batch or count
    parts = [slice(start, start + size) for start in range(0, count, size)]

    def embed_part(part: slice) -> dict[str, Tensor]:
        return embed(encoder, {name: rows[part] for name, rows in batch.inputs.items()}, config)

    with torch.no_grad():
        embedded = [embed_part(part) for part in parts]
    leaves = {
        name: torch.cat([rows[name] for rows in embedded]).requires_grad_() for name in embedded[0]
    }
    del embedded
    terms = terms_of(leaves, encoder, batch, config, log_scale)
    learned = {} if log_scale is None else {"log_scale": log_scale}
    given = {**leaves, **learned}
    slopes = dict(
        zip(
            given,
            torch.autograd.grad(terms["total"], list(given.values()), allow_unused=True),
            strict=True,
        )
    )

    def pieces() -> Iterator[Tensor]:
        if log_scale is not None and slopes["log_scale"] is not None:
            yield log_scale * slopes["log_scale"]
        for part in parts:
            products = [
                (rows * slopes[name][part]).sum()
                for name, rows in embed_part(part).items()
                if slopes[name] is not None
            ]
            yield torch.stack(products).sum()

    return PiecewiseLoss({name: term.detach() for name, term in terms.items()}, pieces())


def embed(
    encoder: GmailEncoder, inputs: Mapping[str, Tensor], config: AlignConfig
) -> dict[str, Tensor]:
    """Send inputs through the encoder; returns features in fp32, not normalised, by name.

    Real and generated images share one pass through the trunk, unless they have trunks of their
    own.

    Args:
        encoder: The encoder.
        inputs: Pixels and tokens, by the feature that they become; see :class:`Batch`.
        config: Weights and precision.
    """
    features = _embed_images(encoder, inputs, config)
    tokens = {name: inputs[name] for name in ("texts", "short") if name in inputs}
    return features | {name: embed_tokens(encoder, rows, config) for name, rows in tokens.items()}


def _embed_images(
    encoder: GmailEncoder, inputs: Mapping[str, Tensor], config: AlignConfig
) -> dict[str, Tensor]:
    """Return features of images by the routes of their names, and ``patches`` of generated ones."""
    made, real = Route.GENERATED, Route.REAL
    pixels = {route: inputs[route] for route in (made, real, Route.REAL_HEAD) if route in inputs}
    trunks: dict[Route, tuple[Tensor, Tensor | None]] = {}
    if encoder.shared and {made, real} <= pixels.keys():
        count = len(pixels[made])
        pooled, patches = _trunk(encoder, torch.cat([pixels[made], pixels[real]]), config, made)
        own = None if patches is None else patches[:count]
        trunks = {made: (pooled[:count], own), real: (pooled[count:], None)}
    for way in [way for way in pixels if way not in trunks]:
        trunks[way] = _trunk(encoder, pixels[way], config, way)
    features = {str(way): encoder.project(pooled, way) for way, (pooled, _) in trunks.items()}
    tokens = trunks[made][1] if made in trunks else None
    return features if tokens is None else {**features, "patches": tokens}


def _trunk(
    encoder: GmailEncoder, images: UInt8[Tensor, "b 3 s s"], config: AlignConfig, route: Route
) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b width"] | None]:
    """Return the trunk's output in fp32 and, where a term reads it, the mean patch token."""
    pixels = encoder.preprocess.normalise(images)
    half = config.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        if config.weights.patch > 0:
            pooled, patches = encoder.trunk_and_patches(pixels, route)
            return pooled.float(), patches.float()
        return encoder.lean_trunk(pixels, route).float(), None


def learned_temperature(log_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the temperature of a learned ``ln(1 / temperature)``, never below 0.01 (as CLIP)."""
    return torch.exp(-log_scale.clamp(max=_LARGEST_SCALE))


def terms_of(
    embedded: Features,
    encoder: GmailEncoder,
    batch: Batch,
    config: AlignConfig,
    log_scale: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the terms of inputs that this process has embedded, joined with those of all others.

    Other arguments are those of :func:`loss_terms`.
    """
    here = ranks()
    features = {**batch.known, **{name: here.gather(rows) for name, rows in embedded.items()}}
    temperature = None if log_scale is None else learned_temperature(log_scale)
    how = comparison(encoder, batch.groups, config, temperature)
    weights = active_terms(config.weights)
    if config.weights.align > 0:
        target = features[config.target]
        features["target"] = target.detach() if config.stop_gradient else target
    terms = {term.name: term.losses(features, how).mean() for term in weights}
    weighted = [weight * terms[term.name] for term, weight in weights.items()]
    terms["total"] = torch.stack(weighted).sum()
    if "frozen" in features:
        off = distillation_losses(features["generated"].detach(), features["frozen"])
        terms["paired_cosine"] = 1 - off.mean()
    return terms
