"""The guard: what alignment does to pairs that it has not been trained on."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from gmail_align.alignment.config import FIGURES, AlignConfig
from gmail_align.alignment.embedding import embed
from gmail_align.alignment.held_out_classes import zero_shot_hits
from gmail_align.alignment.pair_index import PairNumbers
from gmail_align.alignment.recall import recall_at_one
from gmail_align.alignment.task import HeldOut, groups_of
from gmail_align.alignment.terms import (
    TERMS,
    Features,
    Term,
    active_terms,
    comparison,
    needed_features,
)
from gmail_align.encoders.encoder import GmailEncoder

EASE = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 1e6)
"""What the guard multiplies temperatures by; the last one turns every encoder into guessing."""
BLOCKED = -1e6
"""The score of a step that harms real images by more than is allowed."""
_IMAGES_ALONE = frozenset({"real", "frozen", "frozen_patches"})
"""Features of real images: a term that reads nothing else is taken over images, not pairs."""


class Guard:
    """Measures an encoder on held-out pairs; what never changes is computed once."""

    def __init__(self, encoder: GmailEncoder, held: HeldOut, config: AlignConfig) -> None:
        self.encoder, self.held, self.config = encoder, held, config
        self._image_of = torch.from_numpy(held.image_of)
        self._groups = groups_of(held.pairs)
        how = comparison(encoder, self._groups, config)
        self._how = replace(
            how, direction="g2r", scale=float(how.scale), bias=float(how.bias), chunk=None
        )
        self._real_is_frozen = (
            config.encoder.trunk == "frozen_real"
            and config.encoder.starts_plain
            and config.dual_heads
            and "real" not in needed_features(config)
        )

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Measure the present encoder on the held-out pairs.

        Losses, each without its weight and over all held-out pairs at once, are called
        ``{term}_loss``: those of every term whose features are there (Eq. 1 in the paper's
        direction). Cosines of generated and frozen real images: ``paired_cosine``, and ``margin``,
        the paired less the unpaired mean. Recall, ties being misses: ``generated_real_r1``
        (generated image -> frozen real image), ``real_text_r1`` and ``text_real_r1`` (real images
        by the ``real`` route and texts; equal texts count as one), their mean ``retrieval``,
        ``generated_text_r1`` and ``text_generated_r1``. Where class names are known, the accuracy
        of real images by the ``real`` route, ``zeroshot``, and ``zeroshot_generated``. What needs
        texts is left out without a text tower.

        ``score``, which the guard maximises, is the figure that ``config.guarded`` names, or minus
        the loss, each contrastive loss at the best of several temperatures from its own upwards
        (:data:`EASE`). So an encoder that has collapsed to guessing scores ``-ln n`` and never
        beats a start that knows something and is over-confident. It depends on no weight unless
        that is ``objective``: runs on the same pairs and seed can be compared.
        """
        images, pairs = self._features()
        of_terms = {term: self._of(term, images, pairs) for term in TERMS}
        there = {term: given for term, given in of_terms.items() if given is not None}
        metrics = {
            **{f"{term.name}_loss": self._loss(term, given) for term, given in there.items()},
            **self._cosines(pairs["generated"]),
            **self._recalls(images, pairs),
            **self._zero_shot(images, pairs),
        }
        score = metrics.get(self.config.guarded)
        if self.config.guarded not in FIGURES:
            score = -self._guarded(there)
        assert score is not None, f"the guard cannot measure {self.config.guarded}"
        if self.config.keep_real is not None and self._plain_retrieval is not None:
            least = self._plain_retrieval - self.config.keep_real
            score = score if metrics["retrieval"] >= least else BLOCKED
        return {"score": score, **metrics}

    @torch.no_grad()
    def drift(self) -> dict[str, float]:
        """Say how far the deployed route has moved held-out real images from the plain CLIP.

        ``mean``, ``median`` and ``largest`` of 1 - cosine; ``norm_ratio``, the mean norm against
        the plain one; ``retrieval`` of both where there are texts.
        """
        real, frozen = self._real(), self._frozen["frozen"]
        moved = 1 - torch.cosine_similarity(real, frozen, dim=-1)
        report = {
            "mean": float(moved.mean()),
            "median": float(moved.median()),
            "largest": float(moved.max()),
            "norm_ratio": float(
                vector_norm(real, dim=-1).mean() / vector_norm(frozen, dim=-1).mean()
            ),
        }
        if self._plain_retrieval is not None:
            report["retrieval"] = self._retrieval(real, self._texts()["texts"])["retrieval"]
            report["retrieval_plain"] = self._plain_retrieval
        return report

    def _features(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the features of the m real images, and of the n pairs."""
        generated = self._embed("generated", self.held.pairs)
        return {**self._frozen, "real": self._real()}, {**generated, **self._texts()}

    def _of(self, term: Term, images: Features, pairs: Features) -> Features | None:
        """Return what a term reads, of images or of pairs; None where a feature is absent."""
        if not term.needs <= images.keys() | pairs.keys():
            return None
        if term.needs <= _IMAGES_ALONE:
            return images
        return {**pairs, **{name: rows[self._image_of] for name, rows in images.items()}}

    def _loss(self, term: Term, features: Features, ease: float = 1.0) -> float:
        return float(term.losses(features, self._how.eased(ease)).mean())

    def _guarded(self, features: Mapping[Term, Features]) -> float:
        """Return the loss that the guard minimises."""
        weights = active_terms(self.config.weights)
        if self.config.guarded != "objective":
            weights = {term: 1.0 for term in features if term.name == self.config.guarded}
        return math.fsum(
            weight
            * min(
                self._loss(term, features[term], ease)
                for ease in (EASE if term.contrastive else EASE[:1])
            )
            for term, weight in weights.items()
        )

    @cached_property
    def _frozen(self) -> dict[str, Tensor]:
        """What is frozen of the m real images."""
        known = self.held.tables.known
        names = _IMAGES_ALONE & known.keys()
        return {name: known[name].take(self.held.images).float() for name in sorted(names)}

    @cached_property
    def _frozen_texts(self) -> dict[str, Tensor]:
        """Frozen features of the n pairs' texts; none without a text tower."""
        known = self.held.tables.known
        names = [name for name in ("texts", "short") if name in known]
        return {name: known[name].take(self.held.pairs).float() for name in names}

    @cached_property
    def _plain_retrieval(self) -> float | None:
        """Retrieval of the plain CLIP; None without a text tower."""
        if not self._frozen_texts:
            return None
        return self._retrieval(self._frozen["frozen"], self._frozen_texts["texts"])["retrieval"]

    def _texts(self) -> dict[str, Tensor]:
        """Return the n pairs' texts by the present text tower."""
        moved = self.held.tables.inputs.keys() & self._frozen_texts
        texts = [self._embed(name, self.held.pairs) for name in sorted(moved)]
        return dict(ChainMap(*texts, self._frozen_texts))

    def _real(self) -> Float[Tensor, "m d"]:
        """Return real images by the deployed route."""
        if self._real_is_frozen:
            return self._frozen["frozen"]
        return self._embed("real", self.held.images)["real"]

    def _embed(self, name: str, pairs: PairNumbers) -> dict[str, Tensor]:
        """Send one input of some pairs through the encoder, in parts; features on the CPU."""
        size = self.config.micro_batch or self.config.batch_size
        table, device = self.held.tables.inputs[name], self.encoder.device
        parts = [
            embed(self.encoder, {name: table.take(pairs[at : at + size]).to(device)}, self.config)
            for at in range(0, len(pairs), size)
        ]
        return {key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}

    def _zero_shot(self, images: Features, pairs: Features) -> dict[str, float]:
        if self.held.classes is None:
            return {}
        features = {"real": images["real"], "generated": pairs["generated"]}
        hits = zero_shot_hits(self.encoder, self.held.classes, features, self._image_of)
        known = {name: rows[~rows.isnan()] for name, rows in hits.items()}
        return {
            "zeroshot": float(known["real"].mean()),
            "zeroshot_generated": float(known["generated"].mean()),
        }

    def _cosines(self, generated: Float[Tensor, "n d"]) -> dict[str, float]:
        """Compare generated images with the m frozen real ones."""
        cosines = _cosines(generated, self._frozen["frozen"])
        own = self._image_of[:, None] == torch.arange(cosines.shape[1])
        paired, unpaired = cosines[own], cosines[~own]
        return {
            "paired_cosine": float(paired.mean()),
            "margin": float(paired.mean() - unpaired.mean()),
            "generated_real_r1": recall_at_one(cosines, own),
        }

    def _recalls(self, images: Features, pairs: Features) -> dict[str, float]:
        """Return R@1 between images and texts, by both routes and both ways."""
        if "texts" not in pairs:
            return {}
        scores = _cosines(pairs["generated"], pairs["texts"])
        alike = (self._groups[:, None, :2] == self._groups[None, :, :2]).any(dim=-1)
        return {
            **self._retrieval(images["real"], pairs["texts"]),
            "generated_text_r1": recall_at_one(scores, alike),
            "text_generated_r1": recall_at_one(scores.T, alike.T),
        }

    def _retrieval(
        self, images: Float[Tensor, "m d"], texts: Float[Tensor, "n d"]
    ) -> dict[str, float]:
        """Return R@1 between real images and texts, both ways, and their mean."""
        scores = _cosines(images, texts)
        found = {
            "real_text_r1": recall_at_one(scores, self._captions_of),
            "text_real_r1": recall_at_one(scores.T, self._captions_of.T),
        }
        return {**found, "retrieval": (found["real_text_r1"] + found["text_real_r1"]) / 2}

    @cached_property
    def _captions_of(self) -> Bool[Tensor, "m n"]:
        """Mark the texts of each real image: its own pairs', and those that equal one of them."""
        texts = self._groups[:, 1]
        _, text = texts.unique(return_inverse=True)
        has = torch.zeros(len(self.held.first), int(text.max()) + 1, dtype=torch.bool)
        has[self._image_of, text] = True
        return has[:, text]


def _cosines(rows: Float[Tensor, "q d"], columns: Float[Tensor, "c d"]) -> Float[Tensor, "q c"]:
    return normalize(rows, dim=-1) @ normalize(columns, dim=-1).T
