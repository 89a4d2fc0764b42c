"""How many images and captions a step holds or will hold, before anything runs."""

from __future__ import annotations

from typing import NamedTuple

from gmail_align.workflow.steps.data import (
    Choose,
    ChosenPairs,
    HeldOut,
    Imported,
    Pairs,
    Synthesis,
    World,
)
from gmail_align.workflow.steps.encoders import Filtered
from gmail_align.workflow.steps.learners import ContinuedCaptions, PhotoCaptions
from gmail_align.workflow.work import Step, Work


class Amount(NamedTuple):
    """How many images and captions a step holds; None where nothing says it."""

    images: float | None = None
    captions: float | None = None

    def scaled(self, share: float) -> Amount:
        """Return a part of it."""
        return Amount(*(None if value is None else round(value * share) for value in self))


def amount_of(step: Step, work: Work) -> Amount:
    """Return how many images and captions a step holds or will hold."""
    if isinstance(step, Imported):
        parts = [Imported(step.source, part) for part in ("images", "captions")]
        if all(work.done(part) for part in parts):
            counts = {part.part: work.get(part).counts[part.part] for part in parts}
            return Amount(counts["images"], counts["captions"])
        if step.source.world is not None:
            return Amount(step.source.world.images, 5 * step.source.world.images)
        expected = step.source.expect or step.source.about
        return Amount(expected.get("images"), expected.get("captions"))
    if isinstance(step, World):
        return Amount(step.images, 5 * step.images)
    if isinstance(step, HeldOut):
        share = step.share if step.part == "held" else 1 - step.share
        return amount_of(step.captions, work).scaled(share)
    if isinstance(step, Choose):
        return _chosen(step, amount_of(step.captions, work))
    if isinstance(step, Synthesis):
        prompts = amount_of(step.captions, work).captions
        images = None if prompts is None else prompts * step.config.images_per_caption
        return Amount(images, prompts)
    if isinstance(step, ContinuedCaptions):
        short = amount_of(step.captions, work)
        return Amount(short.images, None if short.captions is None else short.captions * step.each)
    if isinstance(step, PhotoCaptions):
        images = amount_of(step.images, work).images
        return Amount(images, None if images is None else images * step.each)
    if isinstance(step, Filtered):
        return amount_of(step.images, work)
    if isinstance(step, Pairs):
        captions = amount_of(step.captions, work)
        generated = amount_of(step.generated, work).images
        return Amount(captions.images, captions.captions if step.texts else generated)
    if isinstance(step, ChosenPairs):
        whole = amount_of(step.pairs, work)
        if step.images < 1:
            return whole.scaled(step.images)
        return whole if not whole.images else whole.scaled(min(1.0, step.images / whole.images))
    return Amount()


def _chosen(step: Choose, whole: Amount) -> Amount:
    if whole.images is None or whole.captions is None:
        return Amount()
    images, each = whole.images, whole.captions / max(whole.images, 1)
    if step.images is not None:
        images = round(images * step.images) if step.images < 1 else min(images, step.images)
    return Amount(images, round(images * (each if step.each is None else min(each, step.each))))
