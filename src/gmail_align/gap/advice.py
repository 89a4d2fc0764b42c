"""What to do about a gap: train as it is, align first, or look for a better generator.

The thresholds are rules of thumb, not findings: they put the three cases in order, and a short
alignment with its guard is the real answer. Each compares numbers that do not depend on how wide
an encoder spreads its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

NEAR = 0.8
"""Closeness from which generated features stand for real ones."""
FAR = 0.15
"""Closeness below which a generated image hardly resembles what its caption asks for."""
INDISTINGUISHABLE = 0.6
"""Probe AUC up to which a linear probe, and so a linear head, can hardly use the difference."""
ALIKE = 0.999
"""Mean cosine of unrelated images from which an encoder tells no image from another."""

KNOWING = 2.0
"""Times chance that an encoder has to find the text of a real image before it can judge any."""

THRESHOLDS: Mapping[str, float] = {
    "near": NEAR,
    "far": FAR,
    "indistinguishable": INDISTINGUISHABLE,
}


class Verdict(StrEnum):
    """The three things one can do, and the one case in which the numbers say nothing."""

    TRAIN_AS_IS = "train_as_is"
    ALIGN_FIRST = "align_first"
    TOO_FAR = "too_far"
    CANNOT_TELL = "cannot_tell"


def closeness(paired_cosine: float, unpaired_cosine: float) -> float:
    """Return how far a pair is on the way from two unrelated images (0) to one and the same (1)."""
    return (paired_cosine - unpaired_cosine) / max(1 - unpaired_cosine, 1e-6)


def class_closeness(class_margin: float, real_class_margin: float) -> float:
    """Return how much of the class structure of real images generated ones show: 0 none, 1 all."""
    return class_margin / max(real_class_margin, 1e-6)


def advise(values: Mapping[str, float]) -> tuple[Verdict, str]:
    """Return the verdict and one sentence that says why.

    Args:
        values: Metric name -> value; ``probe_auc`` is needed, ``paired_cosine`` and
            ``unpaired_cosine`` where the sets are paired, ``class_margin`` and
            ``real_class_margin`` where they share classes, ``text_recall_real`` and
            ``text_recall_chance`` where they have texts.
    """
    if values.get("unpaired_cosine", 0.0) > ALIKE:
        return Verdict.CANNOT_TELL, (
            "Nothing can be told: to this encoder unrelated images are all alike (mean cosine"
            f" {values['unpaired_cosine']:.4f}); measure with another encoder."
        )
    auc = values["probe_auc"]
    told = f"a linear probe tells real from generated with AUC {auc:.2f}"
    measured = _near(values)
    if measured is None:
        if auc <= INDISTINGUISHABLE:
            return Verdict.TRAIN_AS_IS, f"Train as is: {told}, which is hardly more than chance."
        return Verdict.ALIGN_FIRST, (
            f"Align first: {told}; give pairs (real and generated image of one caption) or classes"
            " to see whether the generator follows its captions."
        )
    near, share = measured
    if near < FAR and not _knows(values):
        return Verdict.CANNOT_TELL, (
            "Nothing can be told: this encoder finds the text of a real image about as seldom as"
            f" chance does ({values['text_recall_real']:.1%}), so it does not know such images;"
            " measure with another encoder."
        )
    if near < FAR:
        return Verdict.TOO_FAR, (
            f"The generator is too far: {share}, so most of what the captions say is not in the"
            " images and no alignment can add it; use a better generator or other prompts."
        )
    if near >= NEAR and auc <= INDISTINGUISHABLE:
        return Verdict.TRAIN_AS_IS, f"Train as is: {share}, and {told}."
    return Verdict.ALIGN_FIRST, f"Align first: {share}, and {told}."


def _knows(values: Mapping[str, float]) -> bool:
    """Whether the encoder finds the texts of real images, or there are no texts to ask it for."""
    if "text_recall_real" not in values:
        return True
    return values["text_recall_real"] > KNOWING * values["text_recall_chance"]


def _near(values: Mapping[str, float]) -> tuple[float, str] | None:
    """Return the closeness by pairs, or else by classes, in a number and in words."""
    if "paired_cosine" in values:
        near = closeness(values["paired_cosine"], values["unpaired_cosine"])
        return near, f"a pair is {near:.0%} of the way from unrelated to identical"
    if "class_margin" in values:
        near = class_closeness(values["class_margin"], values["real_class_margin"])
        return near, f"generated images stand out as their class {near:.0%} as much as real ones do"
    return None
