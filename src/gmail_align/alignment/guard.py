"""The guard: what alignment does to pairs that it has not been trained on."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from gmail_align.alignment.config import FIGURES, AlignConfig
from gmail_align.alignment.embedding import embed
from gmail_align.alignment.held_out_classes import probe_hits, zero_shot_hits
from gmail_align.alignment.pair_index import PairNumbers
from gmail_align.alignment.score import Part, Score, first_is_own, gain, sure_gain, total
from gmail_align.alignment.task import HeldOut, groups_of, some_of
from gmail_align.alignment.terms import (
    TERMS,
    Features,
    Term,
    active_terms,
    comparison,
    trains_real_head,
)
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.metrics.bootstrap import Estimate

EASE = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 1e6)
"""What the guard multiplies temperatures by; the last one turns every encoder into guessing."""
T = TypeVar("T")
_IMAGES_ALONE = frozenset({"real", "frozen", "frozen_patches"})
"""Features of real images: a term that reads nothing else is taken over images, not pairs."""


@dataclass(frozen=True)
class Measurement:
    """What one encoder does on the held-out pairs."""

    metrics: Mapping[str, float]
    """Every loss and figure, by name."""
    score: Score
    """What the guard maximises."""
    retrieval: Score
    """Retrieval of real images and texts by the deployed route; empty without a text tower."""


class Guard:
    """Measures an encoder on held-out pairs; what never changes is computed once."""

    def __init__(
        self,
        encoder: GmailEncoder,
        held: HeldOut,
        config: AlignConfig,
        train: PairNumbers | None = None,
    ) -> None:
        self.encoder, self.held, self.config = encoder, held, config
        self._train = train
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
            and not trains_real_head(config)
        )

    def metrics(self) -> dict[str, float]:
        """Measure the present encoder on the held-out pairs.

        Losses, each without its weight and over all held-out pairs at once, are called
        ``{term}_loss``: those of every term whose features are there (Eq. 1 in the paper's
        direction). Cosines of generated and frozen real images: ``paired_cosine``, and ``margin``,
        the paired less the unpaired mean. Recall, ties being misses: ``generated_real_r1``
        (generated image -> frozen real image), ``real_text_r1`` and ``text_real_r1`` (real images
        by the ``real`` route and texts; equal texts count as one), their mean ``retrieval``,
        ``generated_text_r1`` and ``text_generated_r1``; and ``transfer``, the mean recall of real
        images (by the ``real`` route) among generated ones and back. Where class names are known,
        ``transfer`` is the accuracy on real images of a probe of generated ones (where the guard
        selects by it, those of some training pairs too); the zero-shot
        accuracies of real images by the ``real`` route and of generated ones are ``zeroshot`` and
        ``zeroshot_generated``. What needs texts is left out without a text tower.

        ``score``, which the guard maximises, is the figure that ``config.guarded`` names, or minus
        the loss, each contrastive loss at the best of several temperatures from its own upwards
        (:data:`EASE`). So an encoder that has collapsed to guessing scores ``-ln n`` and never
        beats a start that knows something and is over-confident. It depends on no weight unless
        that is ``objective``: runs on the same pairs and seed can be compared.

        ``eligible`` is 0 where the deployed route has lost more retrieval than
        ``config.keep_real`` allows.
        """
        measured = self.measure()
        eligible = float(self._keeps_real(measured))
        return {"score": total(measured.score), "eligible": eligible, **measured.metrics}

    def gain(self, score: Score) -> Estimate:
        """Estimate by how much a measured score exceeds the plain model's."""
        return sure_gain(self._plain.score, score, len(self.held.first))

    def gain_over_shift(self, score: Score) -> Estimate:
        """Estimate by how much a measured score exceeds the plain model's with a shift of means.

        The shift moves the mean of generated images onto that of frozen real ones. It is taken from
        some of the training pairs.
        """
        images, pairs = self._plain_features
        shift = self._shift()
        moved = {n: pairs[n] + shift for n in ("generated", "learnt") if n in pairs}
        moved = {**pairs, **moved}
        shifted = self._as_plain(lambda: self._measured(images, moved))
        return sure_gain(shifted.score, score, len(self.held.first))

    @torch.no_grad()
    def measure(self) -> Measurement:
        """Measure the present encoder; see :meth:`metrics`."""
        return self._measured(*self._features())

    @torch.no_grad()
    def _measured(self, images: Features, pairs: Features) -> Measurement:
        """Measure features of the m real images and of the n pairs."""
        of_terms = {term: self._of(term, images, pairs) for term in TERMS}
        there = {term: given for term, given in of_terms.items() if given is not None}
        figures = {
            **self._cosine_figures(pairs["generated"]),
            "transfer": self._transfer(images["real"], pairs),
            **self._retrieval_figures(images["real"], pairs),
            **self._zero_shot_figures(images["real"], pairs["generated"]),
        }
        metrics = {
            **{f"{term.name}_loss": float(self._loss(term, there[term]).mean()) for term in there},
            **{name: total(score) for name, score in figures.items()},
        }
        selected = self.config.guarded
        score = figures[selected] if selected in FIGURES else self._negative_loss(there)
        return Measurement(metrics, score, figures.get("retrieval", []))

    @torch.no_grad()
    def drift(self) -> dict[str, float]:
        """Say how far the deployed route has moved held-out real images from the plain CLIP.

        ``mean``, ``median`` and ``largest`` of 1 - cosine; ``norm_ratio``, the mean norm against
        the plain one; ``retrieval`` of both where there are texts.
        """
        real, frozen = self._real(), self._frozen["frozen"]
        moved = 1 - torch.cosine_similarity(real, frozen, dim=-1)
        norms = vector_norm(real, dim=-1).mean() / vector_norm(frozen, dim=-1).mean()
        report = {
            "mean": float(moved.mean()),
            "median": float(moved.median()),
            "largest": float(moved.max()),
            "norm_ratio": float(norms),
        }
        if self._frozen_texts:
            report["retrieval"] = total(self._retrieval(real, self._texts()["texts"]))
            report["retrieval_plain"] = total(self._plain_retrieval)
        return report

    @cached_property
    def _plain(self) -> Measurement:
        """The plain model, by whose routes nothing has been learnt."""
        return self._as_plain(lambda: self._measured(*self._plain_features))

    @cached_property
    @torch.no_grad()
    def _plain_features(self) -> tuple[Features, Features]:
        return self._as_plain(self._features)

    def _as_plain(self, measure: Callable[[], T]) -> T:
        applied, self.encoder.applied = self.encoder.applied, False
        try:
            return measure()
        finally:
            self.encoder.applied = applied

    @torch.no_grad()
    def _shift(self) -> Float[Tensor, " d"]:
        """Return the mean of frozen real images less that of generated ones, by training pairs."""
        assert self._train is not None, "this guard does not know the training pairs"
        learnt = self.held.learnt
        pairs = some_of(self._train, self.config.holdout_limit) if learnt is None else learnt
        real = self.held.tables.known["frozen"].take(pairs).float()
        generated = self._plain_features[1].get("learnt")
        if generated is None:
            generated = self._as_plain(lambda: self._embed("generated", pairs))["generated"]
        return real.mean(dim=0) - generated.mean(dim=0)

    @cached_property
    def _plain_retrieval(self) -> Score:
        """Retrieval of the plain model; there are texts."""
        return self._retrieval(self._frozen["frozen"], self._frozen_texts["texts"])

    def _keeps_real(self, measured: Measurement) -> bool:
        """Whether the deployed route keeps enough of the plain model's retrieval."""
        allowed = self.config.keep_real
        if allowed is None or not measured.retrieval:
            return True
        change = gain(self._plain_retrieval, measured.retrieval, len(self.held.first))
        return change.high >= 0 if allowed == "noise" else change.value >= -allowed

    def _features(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the features of the m real images, and of the n pairs."""
        generated = self._embed("generated", self.held.pairs)
        images = {**self._frozen, "target": self._frozen["frozen"], "real": self._real()}
        if self.held.learnt is not None:
            generated["learnt"] = self._embed("generated", self.held.learnt)["generated"]
        return images, {**generated, **self._texts()}

    def _of(self, term: Term, images: Features, pairs: Features) -> Features | None:
        """Return what a term reads, of images or of pairs; None where a feature is absent."""
        if not term.needs <= images.keys() | pairs.keys():
            return None
        if term.needs <= _IMAGES_ALONE:
            return images
        return {**pairs, **{name: rows[self._image_of] for name, rows in images.items()}}

    def _loss(self, term: Term, features: Features, ease: float = 1.0) -> Tensor:
        return term.losses(features, self._how.eased(ease))

    def _negative_loss(self, features: Mapping[Term, Features]) -> Score:
        """Return minus the loss that the guard minimises, at each term's best temperature."""
        weights = active_terms(self.config.weights)
        if self.config.guarded != "objective":
            weights = {term: 1.0 for term in features if term.name == self.config.guarded}
        score = []
        for term, weight in weights.items():
            eases = EASE if term.contrastive else EASE[:1]
            losses = [self._loss(term, features[term], ease) for ease in eases]
            best = min(losses, key=lambda rows: float(rows.mean()))
            score.append(self._part(-best, weight, images=term.needs <= _IMAGES_ALONE))
        return score

    def _part(self, values: Tensor, weight: float = 1.0, *, images: bool = False) -> Part:
        """Return a part of one value a pair, or one a real image."""
        image = np.arange(len(self.held.first)) if images else self.held.image_of
        return Part(values.double().numpy(), image, weight)

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

    def _zero_shot_figures(self, real: Tensor, generated: Tensor) -> dict[str, Score]:
        """Return the accuracies of real and of generated images, where classes are known."""
        if self.held.classes is None or self.held.classes.features is None:
            return {}
        features = {"real": real, "generated": generated}
        hits = zero_shot_hits(self.encoder, self.held.classes, features, self._image_of)
        figures: dict[str, Score] = {}
        for name, key in (("real", "zeroshot"), ("generated", "zeroshot_generated")):
            part = self._part(hits[name], images=name == "real")
            known = ~np.isnan(part.values)
            figures[key] = [Part(part.values[known], part.image[known])]
        return figures

    def _cosine_figures(self, generated: Float[Tensor, "n d"]) -> dict[str, Score]:
        """Compare generated images with the m frozen real ones."""
        cosines = _cosines(generated, self._frozen["frozen"])
        own = self._image_of[:, None] == torch.arange(cosines.shape[1])
        paired, others = cosines[own], cosines[~own].view(len(cosines), -1)
        return {
            "paired_cosine": [self._part(paired)],
            "margin": [self._part(paired - others.mean(dim=1))],
            "generated_real_r1": [self._part(first_is_own(cosines, own))],
        }

    def _retrieval_figures(self, real: Tensor, pairs: Features) -> dict[str, Score]:
        """Return R@1 between images and texts, by both routes and both ways."""
        if "texts" not in pairs:
            return {}
        scores = _cosines(pairs["generated"], pairs["texts"])
        alike = (self._groups[:, None, :2] == self._groups[None, :, :2]).any(dim=-1)
        retrieval = self._retrieval(real, pairs["texts"])
        return {
            "real_text_r1": [replace(retrieval[0], weight=1.0)],
            "text_real_r1": [replace(retrieval[1], weight=1.0)],
            "retrieval": retrieval,
            "generated_text_r1": [self._part(first_is_own(scores, alike))],
            "text_generated_r1": [self._part(first_is_own(scores.T, alike.T))],
        }

    def _transfer(self, real: Float[Tensor, "m d"], pairs: Features) -> list[Part]:
        """Return what carries over from generated images to real ones."""
        classes = self.held.classes
        if classes is not None:
            images = {"real": real}
            images |= {name: pairs[name] for name in ("generated", "learnt") if name in pairs}
            hits = probe_hits(classes, images, self._image_of)
            if hits is not None:
                labelled = classes.labels.numpy() >= 0
                return [Part(hits.numpy()[labelled], np.flatnonzero(labelled))]
        return self._retrieval(real, pairs["generated"])

    def _retrieval(self, real: Float[Tensor, "m d"], pairs: Float[Tensor, "n d"]) -> list[Part]:
        """Return R@1 of real images among the pairs' texts or generated images, and back, halved.

        A real image has its own pairs, and those whose text equals one of theirs.
        """
        scores, own = _cosines(real, pairs), self._captions_of
        return [
            self._part(first_is_own(scores, own), 0.5, images=True),
            self._part(first_is_own(scores.T, own.T), 0.5),
        ]

    @cached_property
    def _captions_of(self) -> Bool[Tensor, "m n"]:
        """Mark the texts of each real image: its own pairs', and those that equal one of them."""
        _, text = self._groups[:, 1].unique(return_inverse=True)
        has = torch.zeros(len(self.held.first), int(text.max()) + 1, dtype=torch.bool)
        has[self._image_of, text] = True
        return has[:, text]


def _cosines(rows: Float[Tensor, "q d"], columns: Float[Tensor, "c d"]) -> Float[Tensor, "q c"]:
    return normalize(rows, dim=-1) @ normalize(columns, dim=-1).T
