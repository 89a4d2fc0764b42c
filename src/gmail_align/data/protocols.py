"""Named protocols of evaluation: which split, which captions, how many, and the headline metric.

A number under one of these names means these counts. A set with other counts is refused, unless it
is declared a subset; then the name itself says so, in every table that prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from gmail_align.config import nearest
from gmail_align.errors import DataError

Task = Literal["retrieval", "captions", "zeroshot", "answers"]


@dataclass(frozen=True)
class Protocol:
    """One way of evaluating on one data set.

    ``counts`` are those of the artifact's own words: images and captions, images and classes, or
    questions. ``captions_each`` limits the captions of an image to its first so many; ``metric``
    is the headline, by the name that the metric has in a result.
    """

    name: str
    task: Task
    dataset: str
    split: str
    rule: str
    counts: Mapping[str, int]
    metric: str
    captions_each: int | None = None
    class_set: str | None = None


def _retrieval(
    name: str, dataset: str, split: str, rule: str, images: int, captions: int, each: int | None
) -> Protocol:
    counts, metric = {"images": images, "captions": captions}, "R@1, R@5 and R@10, both ways"
    return Protocol(name, "retrieval", dataset, split, rule, counts, metric, each)


def _zeroshot(name: str, split: str, rule: str, images: int, classes: int, metric: str) -> Protocol:
    counts = {"images": images, "classes": classes}
    return Protocol(name, "zeroshot", name, split, rule, counts, metric, class_set=name)


def _answers(name: str, dataset: str, split: str, rule: str, questions: int) -> Protocol:
    return Protocol(name, "answers", dataset, split, rule, {"questions": questions}, "accuracy")


_FIVE: Final = "the first five captions of an image, by annotation id"
_LONG: Final = "one long caption an image"

PROTOCOLS: Final[Mapping[str, Protocol]] = {
    protocol.name: protocol
    for protocol in (
        _retrieval("coco_val2017_5k", "coco", "val2017", _FIVE, 5_000, 25_000, 5),
        _retrieval("coco_karpathy_5k", "coco", "test", "all captions", 5_000, 25_010, None),
        _retrieval(
            "flickr30k_31k", "flickr30k", "all", "every line of the token file", 31_783, 158_915, 5
        ),
        _retrieval("flickr30k_karpathy_1k", "flickr30k", "test", "all captions", 1_000, 5_000, 5),
        _retrieval("sharegpt4v_1k", "sharegpt4v", "test", _LONG, 1_000, 1_000, 1),
        _retrieval("urban_1k", "urban1k", "test", _LONG, 1_000, 1_000, 1),
        _answers("scienceqa_img_test", "scienceqa", "test", "the questions with an image", 2_017),
        _answers("scienceqa_test", "scienceqa", "test", "every question", 4_241),
        _answers("mmmu_val", "mmmu", "validation", "all 30 subjects", 900),
        _zeroshot("dtd", "test", "partition 1", 1_880, 47, "accuracy"),
        _zeroshot("stanford_cars", "test", "whole images", 8_041, 196, "accuracy"),
        _zeroshot("sun397", "test", "partition 1", 19_850, 397, "accuracy"),
        _zeroshot("food101", "test", "all images", 25_250, 101, "accuracy"),
        _zeroshot("fgvc_aircraft", "test", "variants", 3_333, 100, "class_mean"),
        _zeroshot("oxford_pets", "test", "breeds", 3_669, 37, "class_mean"),
        _zeroshot(
            "caltech101",
            "all",
            "every image of the 101 categories, without BACKGROUND_Google",
            8_677,
            101,
            "class_mean",
        ),
        _zeroshot("imagenet", "val", "all images", 50_000, 1_000, "accuracy"),
    )
}
"""Name -> protocol."""


def find_protocol(name: str, task: Task | None = None) -> Protocol:
    """Return the protocol of that name.

    Args:
        name: Its name.
        task: What it must be a protocol of; None for any.

    Raises:
        DataError: there is none; the nearest name is offered.
    """
    # Captions are predicted for the images of a retrieval set, and scored against its captions.
    wanted = "retrieval" if task == "captions" else task
    known = [one for one in PROTOCOLS.values() if wanted in (None, one.task)]
    for one in known:
        if one.name == name:
            return one
    names = [one.name for one in known]
    kind = f" of {task}" if task else ""
    raise DataError(f"no protocol{kind} is named {name!r}; {nearest(name, names)}")


def require_dataset(protocol: Protocol | None, *datasets: str) -> None:
    """Check that a protocol, where there is one, is of one of the data sets.

    Raises:
        DataError: it is of another.
    """
    if protocol is not None and protocol.dataset not in datasets:
        raise DataError(
            f"{protocol.name} is a protocol of {protocol.dataset}: import that data set"
        )


def result_name(protocol: str, task: Task, n: Mapping[str, int], *, subset: bool = False) -> str:
    """Return the name that a result carries.

    A known protocol's counts are asserted; any other name is a label of the user's own.

    Args:
        protocol: The name.
        task: What was scored.
        n: How much of each kind was scored; ``texts`` or ``references`` are a protocol's captions.
        subset: Whether what was scored is declared a part of the protocol's set.

    Raises:
        DataError: the counts are not the protocol's, it is one of another task, or a subset of an
            unknown protocol was declared.
    """
    if protocol not in PROTOCOLS and not subset:
        return protocol
    counts = {**n, "captions": n.get("texts", n.get("references", 0))}
    return checked_name(find_protocol(protocol, task), counts, subset=subset)


def headline(protocol: str) -> dict[str, str]:
    """Return ``headline``: the metric that the field reports on this set, where it is known."""
    known = PROTOCOLS.get(protocol)
    return {} if known is None else {"headline": known.metric}


def captions_each(protocol: str) -> int | None:
    """Return how many captions of an image a protocol takes; None for all, or if unknown."""
    known = PROTOCOLS.get(protocol)
    return None if known is None else known.captions_each


def checked_name(protocol: Protocol, counts: Mapping[str, int], *, subset: bool = False) -> str:
    """Return the name that numbers on a set of these counts may carry.

    Args:
        protocol: The protocol.
        counts: How many of each kind the set has; kinds that the protocol does not count are
            passed over.
        subset: Whether the set was declared a part of the protocol's.

    Returns:
        The protocol's name, with what is missing behind it for a subset, as in
        ``coco_val2017_5k (subset: 100 of 5000 images, 500 of 25000 captions)``.

    Raises:
        DataError: the counts are others and no subset was declared, there are more than the
            protocol has, or none.
    """
    have = {kind: counts.get(kind, 0) for kind in protocol.counts}
    other = [kind for kind, number in have.items() if number != protocol.counts[kind]]
    if not other:
        return protocol.name
    more = [kind for kind in other if have[kind] > protocol.counts[kind] or have[kind] < 1]
    listed = " and ".join(f"{have[kind]} {kind}" for kind in have)
    wanted = " and ".join(f"{number} {kind}" for kind, number in protocol.counts.items())
    if more:
        raise DataError(
            f"{protocol.name} has {wanted}, and a set of {listed} is not a part of it: give "
            f"{protocol.dataset} {protocol.split} ({protocol.rule})"
        )
    if not subset:
        raise DataError(
            f"{protocol.name} has {wanted}, but here are {listed}: give all of "
            f"{protocol.dataset} {protocol.split} ({protocol.rule}), or declare --subset"
        )
    parts = ", ".join(f"{have[kind]} of {protocol.counts[kind]} {kind}" for kind in other)
    return f"{protocol.name} (subset: {parts})"
