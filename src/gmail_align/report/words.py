"""The sentences of a report. Each says what the numbers say, losses and open questions included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.data import ReportData, estimates, has_interval, section
from gmail_align.report.names import BOUND, DIFFERENCE, HEADLINE, captioner, share
from gmail_align.report.numbers import count, interval, number
from gmail_align.report.results import alignment_runs, captioning, clear, comparisons

_SPELLED: Final = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
INTERVALS: Final = (
    "Intervals are 95% percentile bootstrap intervals over test images; a difference is paired, "
    "which means that both captioners are judged on the same images in every resample."
)


class Verdict(NamedTuple):
    """The result in words: a short lead, and the sentences that carry the numbers."""

    lead: str
    text: str


def standfirst(result: Mapping[str, Any]) -> str:
    """Say in one sentence what was compared."""
    systems = captioning(result)
    if not systems:
        return "What the run measured, with the data, versions and fingerprints behind it."
    if len(systems) == 1:
        return f"One captioner was judged on {_test_images(result)}."
    many = _SPELLED[len(systems)] if len(systems) < len(_SPELLED) else str(len(systems))
    return (
        f"{many} captioners were judged on the same {_test_images(result)}; they differ in the "
        "images they learned from: real ones, generated ones taken for real, or generated ones "
        "that GMAIL first pulled onto the features of real images."
    )


def verdict(result: Mapping[str, Any]) -> Verdict | None:
    """Say whether GMAIL beat training on generated images as if they were real."""
    if not captioning(result):
        return None
    found = comparisons(result).get(("gmail", "raw"), {}).get(HEADLINE)
    if found is None:
        return Verdict(
            "Not compared.",
            "This run holds no paired difference between GMAIL and training on generated images "
            "as if they were real, so it says nothing about which is better.",
        )
    size = number(abs(found.value))
    bounds = interval(found, DIFFERENCE)
    if not has_interval(found):
        text = "No interval was computed for it, so chance alone may explain it."
        return Verdict(
            f"A difference of {number(found.value, DIFFERENCE)} {HEADLINE} points.", text
        )
    if not clear(found):
        return Verdict(
            "No clear difference.",
            f"GMAIL minus training on generated images as if they were real is "
            f"{number(found.value, DIFFERENCE)} {HEADLINE} points, and its paired 95% interval, "
            f"{bounds}, includes zero. This run does not show that alignment helps, nor that it "
            "hurts.",
        )
    won = found.value > 0
    return Verdict(
        f"GMAIL {'gained' if won else 'lost'} {size} {HEADLINE} points.",
        f"On the same {_images(found)}, the captioner that learned from aligned generated images "
        f"scores {size} points {'higher' if won else 'lower'} than the one that took them for real "
        f"(paired 95%\u00a0interval {bounds})."
        + ("" if won else " In this run alignment did harm."),
    )


def asides(result: Mapping[str, Any]) -> list[Verdict]:
    """Say how GMAIL did against the control, and scarce pairs against their own real images."""
    found = comparisons(result)
    part = share(section(result, "real_images"))
    questions = (
        (("gmail", "lora_only"), "Against the control"),
        (("gmail_scarce", "real_scarce"), f"With {part} of the real images"),
        (("gmail", "real"), "Against the upper bound"),
        (("real", "gmail"), "Up to the upper bound"),
    )
    return [
        Verdict(lead, _compared(found[pair][HEADLINE], *pair))
        for pair, lead in questions
        if HEADLINE in found.get(pair, {})
    ]


def gap_summary(result: Mapping[str, Any]) -> str:
    """Say whether alignment drew pairs together, or only everything."""
    before, after = (estimates(result, "gap", time) for time in ("before", "after"))
    names = ("paired_cosine", "unpaired_cosine", "margin")
    if not all(name in values for name in names for values in (before, after)):
        return ""
    paired, unpaired, margin = (after[name].value - before[name].value for name in names)
    start = f"The paired cosine {_moved(paired)} and the unpaired one {_moved(unpaired)}, "
    if margin > 0:
        return (
            start
            + f"so pairs stand out more from the rest than before: the margin {_moved(margin)}."
        )
    return start + (
        f"so pairs stand out no more than before: the margin {_moved(margin)}. "
        "Alignment did not close the gap by this measure."
    )


def guard_notes(data: ReportData) -> list[str]:
    """Say which step the guard kept of every alignment run."""
    notes = []
    for run in alignment_runs(data):
        if run.best_step is None:
            continue
        label, of = captioner(run.name).label, f" of {count(run.steps)}" if run.steps else ""
        notes.append(
            f"{label}: step {count(run.best_step)}{of} was the best and was kept."
            if run.applied
            else f"{label}: no step{of} was better than none, so the encoder was left as it was."
        )
    return notes


def limits(data: ReportData) -> list[str]:
    """Say what the numbers do not show."""
    result = data.result
    notes = []
    seeds, first = result.get("seeds") or 1, result.get("seed")
    if seeds > 1:
        notes.append(
            f"{seeds} seeds. With so few, an interval over seeds comes out too narrow. Curves, "
            "pictures and the measures of the encoder are those of the first seed."
        )
    elif first is not None:
        notes.append(
            f"One seed ({first}). The intervals cover the choice of test images, not the luck of "
            "training."
        )
    if captioning(result):
        notes.append(
            "CIDEr weighs words by how rare they are in these references, so scores compare "
            "within this page and not with those of papers on other images."
        )
    if BOUND in captioning(result):
        notes.append(
            "The upper bound is what the same captioner reaches with all real images; it is no "
            "limit of the method."
        )
    if data.embeddings:
        notes.append(
            "t-SNE keeps neighbours and bends distances. Its two panels are laid out apart, so "
            "places in one mean nothing in the other."
        )
    missing = section(result, "unavailable")
    notes += [f"{name} is missing: {reason}" for name, reason in missing.items()]
    return notes + [str(note) for note in result.get("limits") or ()]


def _compared(found: Estimate, first: str, second: str) -> str:
    names = [captioner(name).phrase for name in (first, second)]
    size, bounds = number(abs(found.value)), interval(found, DIFFERENCE)
    if clear(found):
        way = "more" if found.value > 0 else "less"
        text = f"{names[0]} scores {size} points {way} than {names[1]} ({bounds})."
    elif bounds:
        text = (
            f"{names[0]} and {names[1]} are not clearly apart: "
            f"{number(found.value, DIFFERENCE)} points ({bounds})."
        )
    else:
        text = (
            f"{names[0]} minus {names[1]}: {number(found.value, DIFFERENCE)}, without an interval."
        )
    return text[0].upper() + text[1:]


def _moved(change: float) -> str:
    if abs(change) < 0.0005:
        return "stayed where it was"
    return f"{'rose' if change > 0 else 'fell'} by {abs(change):.3f}"


def _images(found: Estimate) -> str:
    return f"{count(found.n)} real test images" if found.n else "real test images"


def _test_images(result: Mapping[str, Any]) -> str:
    sizes = [
        row[HEADLINE] for row in captioning(result).values() if HEADLINE in row and row[HEADLINE].n
    ]
    return _images(sizes[0]) if sizes else "real test images"
