"""The guard: what alignment does to pairs that it has not been trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from gmail_align.alignment.canary import HeldClasses, zero_shot
from gmail_align.alignment.config import FIGURES, AlignConfig
from gmail_align.alignment.losses import (
    alignment_loss,
    distillation_loss,
    norm_loss,
)
from gmail_align.alignment.pair_index import Rows
from gmail_align.alignment.pairset import PairRows, Tables
from gmail_align.alignment.recall import recall_at_one
from gmail_align.alignment.terms import Embedded, adapted_tokens
from gmail_align.alignment.text_loss import TextLoss, TextSide, text_loss_of
from gmail_align.alignment.tokens import embed_tokens
from gmail_align.data.batches import same_mask
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.features.pixels import Pixels

EASE = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 1e6)
"""What the guard multiplies temperatures by; the last one turns every encoder into guessing."""
_BLOCKED = -1e6
"""The score of a step that harms real images by more than is allowed."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out part: n pairs of m real images."""

    generated: Rows
    """Shape (n,): rows of the generated pixels."""
    real: Rows
    """Shape (m,): rows of the real pixels."""
    frozen: Float[Tensor, "m d"]
    """Frozen features of the real images."""
    texts: Float[Tensor, "n d"] | None
    """Text features of the pairs' captions; None where the encoder has no text tower."""
    image_of: Rows
    """Shape (n,): which of the m real images a pair belongs to."""
    same: Bool[Tensor, "n n"]
    """Pairs that share a real image or a text."""
    patches: Float[Tensor, "m width"] | None = None
    """Means of the frozen patch tokens of the real images."""
    short: Float[Tensor, "n d"] | None = None
    """Features of the captions' first sentences, where the text loss reads them."""
    same_short: Bool[Tensor, "n n"] | None = None
    """Pairs that share a real image or a first sentence."""
    tokens: Int32[Tensor, "n row"] | None = None
    """Of the captions, where the text tower is trained; ``texts`` stay those of the frozen one."""
    short_tokens: Int32[Tensor, "n row"] | None = None
    """The same of first sentences."""
    classes: HeldClasses | None = None
    """Where class names are known."""

    @property
    def text_side(self) -> TextSide | None:
        """What the text terms compare images with."""
        if self.texts is None:
            return None
        return TextSide(self.texts, self.same, None, self.short, self.same_short)


def make_held_out(rows: PairRows, tables: Tables) -> HeldOut:
    """Collect the held-out pairs; their number is bounded, so they are kept in memory."""
    assert tables.frozen is not None, "held-out real images have frozen features"
    _, first, image_of = np.unique(rows.image_group, return_index=True, return_inverse=True)
    same = same_mask(rows.image_group, rows.text_group)
    places = torch.from_numpy(rows.frozen[first])
    texts = None if tables.texts is None else tables.texts.array[torch.from_numpy(rows.text)]
    short = same_short = None
    if tables.short is not None and rows.short is not None and rows.short_group is not None:
        short = tables.short.array[torch.from_numpy(rows.short)].float()
        same_short = torch.from_numpy(same_mask(rows.image_group, rows.short_group))
    return HeldOut(
        generated=rows.generated,
        real=rows.real[first],
        frozen=tables.frozen.array[places].float(),
        texts=None if texts is None else texts.float(),
        image_of=image_of.astype(np.int64).reshape(-1),
        same=torch.from_numpy(same),
        patches=tables.patches.array[places] if tables.patches else None,
        short=short,
        same_short=same_short,
        tokens=_rows(tables.tokens, rows.text),
        short_tokens=_rows(tables.short_tokens, rows.short),
    )


def _rows(table: Tensor | None, rows: Rows | None) -> Tensor | None:
    return None if table is None or rows is None else table[torch.from_numpy(rows)]


@torch.no_grad()
def guard_metrics(
    encoder: GmailEncoder, held: HeldOut, tables: Tables, config: AlignConfig
) -> dict[str, float]:
    """Measure the present encoder on the held-out pairs.

    Losses, each without its weight and over all held-out pairs at once: ``align_loss`` (Eq. 1 in
    the paper's direction), ``text_generated_loss``, ``text_real_loss``, ``distill_real_loss``,
    ``distill_generated_loss``, ``norm_loss`` and, when its weight is not 0, ``patch_loss``.
    Cosines of generated and frozen real images: ``paired_cosine``, and ``margin``, the paired less
    the unpaired mean. Recall, ties being misses: ``generated_real_r1`` (generated image -> frozen
    real image), ``real_text_r1`` and ``text_real_r1`` (real images by the ``real`` route and
    texts), their mean ``retrieval``, ``generated_text_r1`` and ``text_generated_r1``. Where class
    names are known, the accuracy of real images by the ``real`` route, ``zeroshot``, and
    ``zeroshot_generated``. What needs texts is left out without a text tower.

    ``score``, which the guard maximises, is the figure that ``config.guarded`` names, or minus the
    loss, each contrastive loss at the best of several temperatures from its own upwards
    (:data:`EASE`). So an encoder that has collapsed to guessing scores ``-ln n`` and never beats a
    start that knows something and is over-confident. It depends on no weight unless that is
    ``objective``: runs on the same pairs and seed can be compared.
    """
    plain, held = held, _with_texts(encoder, held, config)
    generated, patches = embed(encoder, tables.generated, held.generated, Route.GENERATED, config)
    real, _ = embed(encoder, _real(tables), held.real, Route.REAL, config)
    text_loss = text_loss_of(encoder, config)
    text_loss = replace(text_loss, scale=float(text_loss.scale), bias=float(text_loss.bias))
    losses = _losses(Embedded(generated, real, patches), held, config, text_loss)
    metrics = {
        **{f"{name}_loss": float(loss(1.0)) for name, loss in losses.items()},
        **_cosines(generated, held),
        **_recalls(generated, real, held),
        **_zero_shot(encoder, generated, real, held),
    }
    score = metrics[config.guarded] if config.guarded in FIGURES else -_guarded(losses, config)
    if config.keep_real is not None and held.texts is not None:
        least = _recalls(generated, held.frozen, plain)["retrieval"] - config.keep_real
        score = score if metrics["retrieval"] >= least else _BLOCKED
    return {"score": score, **metrics}


@torch.no_grad()
def drift_report(
    encoder: GmailEncoder, held: HeldOut, tables: Tables, config: AlignConfig
) -> dict[str, float]:
    """Say how far the deployed route has moved held-out real images from the plain CLIP.

    ``mean``, ``median`` and ``largest`` of 1 - cosine; ``norm_ratio``, the mean norm against the
    plain one; ``retrieval`` of both where there are texts.
    """
    real, _ = embed(encoder, _real(tables), held.real, Route.REAL, config)
    moved = 1 - torch.cosine_similarity(real, held.frozen, dim=-1)
    report = {
        "mean": float(moved.mean()),
        "median": float(moved.median()),
        "largest": float(moved.max()),
        "norm_ratio": float(
            vector_norm(real, dim=-1).mean() / vector_norm(held.frozen, dim=-1).mean()
        ),
    }
    if held.texts is not None:
        moved_texts = _with_texts(encoder, held, config)
        report["retrieval"] = _recalls(real, real, moved_texts)["retrieval"]
        report["retrieval_plain"] = _recalls(held.frozen, held.frozen, held)["retrieval"]
    return report


def _zero_shot(
    encoder: GmailEncoder, generated: Tensor, real: Tensor, held: HeldOut
) -> dict[str, float]:
    if held.classes is None:
        return {}
    images = {"real": real, "generated": generated}
    return zero_shot(encoder, held.classes, images, torch.from_numpy(held.image_of))


def _with_texts(encoder: GmailEncoder, held: HeldOut, config: AlignConfig) -> HeldOut:
    """Embed the captions by the present text tower, where that is trained."""
    size = config.micro_batch or config.batch_size
    found: dict[str, Any] = {}
    for name, rows in (("texts", held.tokens), ("short", held.short_tokens)):
        if rows is not None:
            parts = (part.to(encoder.device) for part in rows.split(size))
            found[name] = torch.cat([embed_tokens(encoder, part, config).cpu() for part in parts])
    return replace(held, **found)


def embed(
    encoder: GmailEncoder, pixels: Pixels, rows: Rows, route: Route, config: AlignConfig
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k width"] | None]:
    """Return features by ``route`` on the CPU and, where a term needs them, mean patch tokens."""
    features, patches = [], []
    size = config.micro_batch or config.batch_size
    for start in range(0, len(rows), size):
        part = torch.from_numpy(rows[start : start + size])
        pooled, tokens = adapted_tokens(
            encoder, pixels.array[part].to(encoder.device), config, route
        )
        features.append(encoder.project(pooled, route).cpu())
        patches.append(None if tokens is None else tokens.cpu())
    found = [tokens for tokens in patches if tokens is not None]
    return torch.cat(features), torch.cat(found) if found else None


def _real(tables: Tables) -> Pixels:
    assert tables.real is not None, "held-out real images have pixels"
    return tables.real


def _losses(
    features: Embedded, held: HeldOut, config: AlignConfig, text_loss: TextLoss
) -> dict[str, Callable[[float], Tensor]]:
    """Return every loss as a function of what its temperature is multiplied by."""
    image_of, generated, real = torch.from_numpy(held.image_of), features.generated, features.real
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

    def texts(images: Tensor, side: TextSide) -> Callable[[float], Tensor]:
        return lambda ease: text_loss(images, side, ease)

    losses = {"align": eq1(generated, target)}
    if held.text_side is not None:
        losses["text_generated"] = texts(generated, held.text_side)
        losses["text_real"] = texts(of_pairs, held.text_side)
    losses["distill_real"] = lambda ease: distillation_loss(real, held.frozen)
    losses["distill_generated"] = lambda ease: distillation_loss(generated, target)
    losses["norm"] = lambda ease: norm_loss(generated, target)
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


def _cosines(generated: Tensor, held: HeldOut) -> dict[str, float]:
    """Compare generated images with the m frozen real ones."""
    cosines = normalize(generated, dim=-1) @ normalize(held.frozen, dim=-1).T
    own = _own(held)
    paired, unpaired = cosines[own], cosines[~own]
    return {
        "paired_cosine": float(paired.mean()),
        "margin": float(paired.mean() - unpaired.mean()),
        "generated_real_r1": recall_at_one(cosines, own),
    }


def _recalls(generated: Tensor, real: Tensor, held: HeldOut) -> dict[str, float]:
    """Return R@1 between images and texts, by both routes and both ways."""
    if held.texts is None:
        return {}
    texts = normalize(held.texts, dim=-1)
    of_real, own = normalize(real, dim=-1) @ texts.T, _own(held).T
    found = {
        "real_text_r1": recall_at_one(of_real, own),
        "text_real_r1": recall_at_one(of_real.T, own.T),
    }
    found["retrieval"] = (found["real_text_r1"] + found["text_real_r1"]) / 2
    if len(generated) == len(texts):
        scores = normalize(generated, dim=-1) @ texts.T
        found["generated_text_r1"] = recall_at_one(scores, held.same)
        found["text_generated_r1"] = recall_at_one(scores.T, held.same.T)
    return found


def _own(held: HeldOut) -> Bool[Tensor, "n m"]:
    """Mark the real image of each pair."""
    own = torch.zeros(len(held.image_of), len(held.frozen), dtype=torch.bool)
    own[torch.arange(len(own)), torch.from_numpy(held.image_of)] = True
    return own
