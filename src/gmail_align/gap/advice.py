"""What to do about a gap: train as it is, align first, or look for a better generator.

The thresholds are rules of thumb, not findings: they put the three cases in order, and a short
alignment with its guard is the real answer. A verdict needs intervals that exclude the other two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

from gmail_align.metrics.bootstrap import Estimate

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
LONGER = 4.0
"""Times as long, or as short, as real features that generated ones of one encoder never are."""
FEWEST = 20
"""Images of each kind below which an interval of resampled images is too narrow to be trusted."""
SHARED = 0.5
"""Share of the generated images above which, if they are real ones too, both sets are one."""
_KNOWN = frozenset({"text_recall_real", "real_class_margin"})
"""What shows that an encoder knows the real images."""

THRESHOLDS: Mapping[str, float] = {
    "near": NEAR,
    "far": FAR,
    "indistinguishable": INDISTINGUISHABLE,
}


class Verdict(StrEnum):
    """The three things one can do, and the case in which the numbers do not decide."""

    TRAIN_AS_IS = "train_as_is"
    ALIGN_FIRST = "align_first"
    TOO_FAR = "too_far"
    CANNOT_TELL = "cannot_tell"


def closeness(margin: float, unpaired_cosine: float) -> float:
    """Return how far a pair is on the way from two unrelated images (0) to one and the same (1)."""
    return margin / max(1 - unpaired_cosine, 1e-6)


def advise(
    metrics: Mapping[str, Estimate],
    chance: float | None = None,
    alike: float = 0.0,
    distinct: int | None = None,
    shared: float = 0.0,
) -> tuple[Verdict, str]:
    """Return the verdict, and why in one sentence; the first question is whether anything is told.

    Args:
        metrics: ``probe_auc`` is needed; ``margin`` and ``unpaired_cosine`` where the sets are
            paired, ``class_margin`` and ``real_class_margin`` where they share classes, and
            ``text_recall_real`` where they have texts.
        chance: Text recall of an encoder that guesses.
        alike: Mean cosine of two different real images.
        distinct: Images of each kind, copies left out.
        shared: Share of the generated images that are among the real ones too.
    """
    doubt = _doubt(metrics, chance, alike, distinct) or _overlap(shared)
    if doubt is not None:
        return Verdict.CANNOT_TELL, f"Nothing can be told: {doubt}."
    auc = metrics["probe_auc"]
    told = f"a linear probe tells real from generated with AUC {_shown(auc)}"
    near, share = _closeness(metrics)
    if near is not None and near.high < FAR and not metrics.keys() & _KNOWN:
        return Verdict.CANNOT_TELL, (
            f"Nothing can be told: {share}; either the generator does not follow its captions, or "
            "this encoder does not know such images: give captions or classes, which tell."
        )
    if near is not None and near.high < FAR:
        return Verdict.TOO_FAR, (
            f"The generator is too far: {share}, so most of what the captions say is not in the"
            " images and no alignment can add it; use a better generator or other prompts."
        )
    same = auc.high <= INDISTINGUISHABLE
    length = metrics["norm_ratio"].value if "norm_ratio" in metrics else 1.0
    if same and not 1 / LONGER <= length <= LONGER:
        return Verdict.CANNOT_TELL, (
            f"Nothing can be told: generated features are {length:.3g} times as long as real ones,"
            " which no other measure sees; scale both sides alike."
        )
    if same and (near is None or near.low >= NEAR):
        why = (
            f"{told}, which is hardly more than chance" if near is None else f"{share}, and {told}"
        )
        return Verdict.TRAIN_AS_IS, f"Train as is: {why}."
    apart = auc.low > INDISTINGUISHABLE or (near is not None and near.high < NEAR)
    if apart and near is None:
        return Verdict.ALIGN_FIRST, (
            f"Align first: {told}; give pairs (real and generated image of one caption) or classes"
            " to see whether the generator follows its captions."
        )
    if apart and near is not None and near.low >= FAR:
        return Verdict.ALIGN_FIRST, f"Align first: {share}, and {told}."
    open_question = told if near is None else f"{share}, and {told}"
    return Verdict.CANNOT_TELL, (
        f"Nothing can be told: {open_question}; these intervals fit more than one verdict, so"
        " measure more images."
    )


def _doubt(
    metrics: Mapping[str, Estimate], chance: float | None, alike: float, distinct: int | None
) -> str | None:
    """Say why the numbers cannot decide, whatever they are; None if they can."""
    too_few = "{} images of each kind are too few; give at least " + str(FEWEST)
    fewest = min(one.n for one in metrics.values())
    if fewest < FEWEST:
        return too_few.format(fewest)
    unpaired = metrics.get("unpaired_cosine")
    alike = alike if unpaired is None else max(alike, unpaired.value)
    if alike > ALIKE:
        return (
            f"to this encoder unrelated images are all alike (mean cosine {alike:.4f}); measure "
            "with another encoder"
        )
    if distinct is not None and distinct < FEWEST:
        return f"{too_few.format(distinct)}, copies left out"
    recall, other = metrics.get("text_recall_real"), "measure with another encoder"
    if recall is not None and chance is not None:
        needed = min(KNOWING * chance, (1 + chance) / 2)
        if not recall.low > needed:
            return (
                "this encoder finds the text of a real image hardly more often than chance"
                f" ({recall.value:.1%} against {chance:.1%}), so it does not know such images;"
                f" {other}"
            )
    classes = metrics.get("real_class_margin")
    if classes is not None and not classes.low > 0:
        return f"this encoder does not tell the classes of real images apart; {other}"
    return None


def _overlap(shared: float) -> str | None:
    """Say why two sets that are one cannot tell; None if they are not."""
    if shared <= SHARED:
        return None
    return (
        f"{shared:.0%} of the generated images are among the real ones too; compare a set of real "
        "images with one of generated images"
    )


def _closeness(metrics: Mapping[str, Estimate]) -> tuple[Estimate | None, str]:
    """Return the closeness by pairs, or else by classes, with its interval, and in words."""
    if "margin" in metrics:
        own, unpaired = metrics["margin"], metrics["unpaired_cosine"].value
        values = [closeness(one, unpaired) for one in (own.value, own.low, own.high)]
        near = Estimate(values[0], values[1], values[2], own.n)
        return _bounded(near), f"a pair is {_percent(near)} of the way from unrelated to identical"
    if "class_margin" in metrics:
        own, real = metrics["class_margin"], metrics["real_class_margin"]
        least, most = max(real.low, 1e-6), max(real.high, 1e-6)
        ends = [one / bound for one in (own.low, own.high) for bound in (least, most)]
        near = Estimate(own.value / max(real.value, 1e-6), min(ends), max(ends), own.n)
        share = (
            f"generated images stand out as their class {_percent(near)} as much as real ones do"
        )
        return _bounded(near), share
    return None, ""


def _bounded(one: Estimate) -> Estimate:
    """Return an estimate whose unknown interval holds everything."""
    if math.isnan(one.low) or math.isnan(one.high):
        return Estimate(one.value, -math.inf, math.inf, one.n)
    return one


def _percent(one: Estimate) -> str:
    return f"{one.value:.0%} ({one.low:.0%} to {one.high:.0%})"


def _shown(one: Estimate) -> str:
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"
