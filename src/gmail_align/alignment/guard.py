"""The guard: what alignment does to pairs that it has not been trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.losses import (
    alignment_loss,
    contrastive_text_loss,
    distillation_loss,
    norm_loss,
)
from gmail_align.alignment.pairset import PairRows, Rows, Tables
from gmail_align.alignment.terms import Embedded, adapted_tokens
from gmail_align.data.batches import same_mask
from gmail_align.encoders.clip import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.features.pixels import Pixels

EASE = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 1e6)
"""What the guard multiplies temperatures by; the last one turns every encoder into guessing."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out part: n pairs of m real images."""

    generated: Rows
    """Shape (n,): rows of the generated pixels."""
    real: Rows
    """Shape (m,): rows of the real pixels."""
    frozen: Float[Tensor, "m d"]
    """Frozen features of the real images."""
    texts: Float[Tensor, "n d"]
    """Text features of the pairs' captions."""
    image_of: Rows
    """Shape (n,): which of the m real images a pair belongs to."""
    same: Bool[Tensor, "n n"]
    """Pairs that share a real image or a text."""
    patches: Float[Tensor, "m width"] | None = None
    """Means of the frozen patch tokens of the real images."""


def make_held_out(rows: PairRows, tables: Tables) -> HeldOut:
    """Collect the held-out pairs; their number is bounded, so they are kept in memory."""
    assert tables.frozen is not None, "held-out real images have frozen features"
    _, first, image_of = np.unique(rows.image_group, return_index=True, return_inverse=True)
    same = same_mask(rows.image_group, rows.text_group)
    places = torch.from_numpy(rows.frozen[first])
    return HeldOut(
        generated=rows.generated,
        real=rows.real[first],
        frozen=tables.frozen.array[places].float(),
        texts=tables.texts.array[torch.from_numpy(rows.text)].float(),
        image_of=image_of.astype(np.int64).reshape(-1),
        same=torch.from_numpy(same),
        patches=tables.patches.array[places] if tables.patches else None,
    )


@torch.no_grad()
def guard_metrics(
    encoder: GmailEncoder, held: HeldOut, tables: Tables, config: AlignConfig
) -> dict[str, float]:
    """Measure the present encoder on the held-out pairs.

    Losses, each without its weight and over all held-out pairs at once: ``align_loss`` (Eq. 1 in
    the paper's direction), ``text_generated_loss``, ``text_real_loss``, ``distill_real_loss``,
    ``distill_generated_loss``, ``norm_loss`` and, when its weight is not 0, ``patch_loss``.
    Cosines of generated and frozen real images: ``paired_cosine``, and ``margin``, the paired less
    the unpaired mean. Recall: ``generated_real_r1`` (generated image -> frozen real image) and
    ``real_text_r1`` (real image by the ``real`` route -> one of its captions); ties are misses.

    ``score``, which the guard maximises, is minus the loss that ``config.guarded`` names, each
    contrastive loss at the best of several temperatures from its own upwards (:data:`EASE`). So an
    encoder that has collapsed to guessing scores ``-ln n`` and never beats a start that knows
    something and is over-confident. It depends on no weight unless that is ``objective``: runs on
    the same pairs and seed can be compared.
    """
    assert tables.real is not None, "held-out real images have pixels"
    generated, patches = _embed(encoder, tables.generated, held.generated, Route.GENERATED, config)
    real, _ = _embed(encoder, tables.real, held.real, Route.REAL, config)
    image_of = torch.from_numpy(held.image_of)
    features = Embedded(generated, real, patches)
    losses = _losses(features, held, config, float(encoder.logit_scale))
    return {
        "score": -_guarded(losses, config),
        **{f"{name}_loss": float(loss(1.0)) for name, loss in losses.items()},
        **_cosines(generated, held, image_of),
        "real_text_r1": _real_text_recall(real, held, image_of),
    }


def _losses(
    features: Embedded, held: HeldOut, config: AlignConfig, scale: float
) -> dict[str, Callable[[float], Tensor]]:
    """Return every loss as a function of what its temperature is multiplied by."""
    image_of, generated = torch.from_numpy(held.image_of), features.generated
    real = features.real
    assert real is not None, "the guard embeds real images too"
    same, positives = held.same, config.positives
    target, of_pairs = held.frozen[image_of], real[image_of]

    def eq1(images: Tensor, targets: Tensor) -> Callable[[float], Tensor]:
        return lambda ease: alignment_loss(
            images,
            targets,
            temperature=config.temperature * ease,
            same=same,
            positives=positives,
        )

    def texts(images: Tensor) -> Callable[[float], Tensor]:
        return lambda ease: contrastive_text_loss(images, held.texts, scale / ease, same, positives)

    losses = {
        "align": eq1(generated, target),
        "text_generated": texts(generated),
        "text_real": texts(of_pairs),
        "distill_real": lambda ease: distillation_loss(real, held.frozen),
        "distill_generated": lambda ease: distillation_loss(generated, target),
        "norm": lambda ease: norm_loss(generated, target),
    }
    if features.patches is not None and held.patches is not None:
        losses["patch"] = eq1(features.patches, held.patches[image_of])
    return losses


def _guarded(losses: dict[str, Callable[[float], Tensor]], config: AlignConfig) -> float:
    """Return the loss that the guard minimises."""
    weights: dict[str, float] = config.weights.model_dump()
    if config.guarded != "objective":
        weights = {config.guarded: 1.0}
    return math.fsum(
        weight * min(float(losses[name](ease)) for ease in EASE)
        for name, weight in weights.items()
        if weight > 0
    )


def _embed(
    encoder: GmailEncoder, pixels: Pixels, rows: Rows, route: Route, config: AlignConfig
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k width"] | None]:
    """Return features by ``route`` and, where a term needs them, mean patch tokens."""
    features, patches = [], []
    for start in range(0, len(rows), config.batch_size):
        part = torch.from_numpy(rows[start : start + config.batch_size])
        pooled, tokens = adapted_tokens(encoder, pixels.array[part].to(encoder.device), config)
        features.append(encoder.project(pooled, route).cpu())
        patches.append(None if tokens is None else tokens.cpu())
    found = [tokens for tokens in patches if tokens is not None]
    return torch.cat(features), torch.cat(found) if found else None


def _cosines(generated: Tensor, held: HeldOut, image_of: Tensor) -> dict[str, float]:
    """Compare generated images with the m frozen real ones."""
    cosines = normalize(generated, dim=-1) @ normalize(held.frozen, dim=-1).T
    own = torch.zeros_like(cosines, dtype=torch.bool)
    own[torch.arange(len(own)), image_of] = True
    paired, unpaired = cosines[own], cosines[~own]
    best_other = cosines.masked_fill(own, -torch.inf).amax(dim=1)
    return {
        "paired_cosine": float(paired.mean()),
        "margin": float(paired.mean() - unpaired.mean()),
        "generated_real_r1": float((paired > best_other).float().mean()),
    }


def _real_text_recall(real: Tensor, held: HeldOut, image_of: Tensor) -> float:
    """Return the share of real images whose best text is one of their own."""
    cosines = normalize(real, dim=-1) @ normalize(held.texts, dim=-1).T
    own = torch.zeros_like(cosines, dtype=torch.bool)
    own[image_of, torch.arange(len(image_of))] = True
    of_own = cosines.masked_fill(~own, -torch.inf).amax(dim=1)
    of_others = cosines.masked_fill(own, -torch.inf).amax(dim=1)
    return float((of_own > of_others).float().mean())
