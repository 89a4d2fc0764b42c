"""The sentences of a report. Each says what the numbers say, losses and open questions included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.data import (
    ClaimResult,
    EncoderResult,
    ReportData,
    claims,
    encoders,
    has_interval,
    headline,
    not_applied,
    section,
)
from gmail_align.report.gap_names import GAP_MEASURES
from gmail_align.report.names import DIFFERENCE, REMARKS
from gmail_align.report.numbers import count, interval, number
from gmail_align.report.results import clear, scored_rows

_SPELLED: Final = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
INTERVALS: Final = (
    "Intervals are 95% percentile bootstrap intervals over test images; a difference is paired, "
    "which means that both rows are judged on the same images in every resample."
)
_VERDICTS: Final = {
    "holds": "holds",
    "not significant": "no clear difference",
    "reversed": "the opposite holds",
    "not tested": "not tested",
}


class Finding(NamedTuple):
    """A result in words: a short lead, and the sentences that carry the numbers."""

    lead: str
    text: str


def standfirst(result: Mapping[str, Any]) -> str:
    """Say in one sentence what was compared."""
    scored, gathered = scored_rows(result), result.get("gathered")
    if gathered:
        return (
            f"What {count(gathered)} results and encoders say, next to each other. Numbers compare "
            "where protocol and number of images are equal."
        )
    if not scored:
        return "What the run measured, with the data, versions and fingerprints behind it."
    if len(scored) == 1:
        return f"One row was judged on {_test_images(result)}."
    many = _SPELLED[len(scored)] if len(scored) < len(_SPELLED) else str(len(scored))
    return (
        f"{many} rows were judged on the same {_test_images(result)}; they differ in the images "
        "that they learned from, and in what was done to the features of those images first."
    )


def findings(result: Mapping[str, Any]) -> list[Finding]:
    """Say of every claim whether it holds, with the numbers behind it; the first one leads."""
    if not scored_rows(result) or result.get("gathered"):
        return []
    tested = claims(result)
    if not tested:
        return [Finding("Nothing is claimed.", "The recipe names no claim that this run tests.")]
    seeds = result.get("seeds") or 1
    return [
        Finding(
            f"{claim.name}: {_VERDICTS[claim.verdict]}{_by_seeds(claim, seeds)}.",
            _tested(claim) + _evidence(claim, seeds) + _unapplied(claim, result),
        )
        for claim in tested
    ]


def _by_seeds(claim: ClaimResult, seeds: int) -> str:
    """Say how many trainings a verdict rests on."""
    if claim.verdict not in ("holds", "reversed"):
        return ""
    return ", by one seed" if seeds == 1 else f", by {seeds} seeds"


def _evidence(claim: ClaimResult, seeds: int) -> str:
    """Say what one training cannot decide."""
    if seeds > 1 or claim.difference is None:
        return ""
    return " One seed leaves out the luck of training: run five seeds to decide."


def _unapplied(claim: ClaimResult, result: Mapping[str, Any]) -> str:
    """Say where a side of the claim went through an alignment that was not applied."""
    unapplied = not_applied(result)
    names = dict.fromkeys(
        side.align for side in (claim.better, claim.worse) if side.align in unapplied
    )
    return "".join(
        f" The guard did not apply {name}, so this compares unaligned features." for name in names
    )


def _tested(claim: ClaimResult) -> str:
    """Say what a claim's paired difference is, and what that allows to say."""
    value, metric = claim.difference, claim.metric
    better, worse = claim.better.label, claim.worse.label
    if value is None or not has_interval(value):
        return f"This run holds no paired difference between {better} and {worse} by {metric}."
    bounds = interval(value, DIFFERENCE)
    if not clear(value):
        return (
            f"On the same {_images(value)}, {better} minus {worse} is "
            f"{number(value.value, DIFFERENCE)} {metric} points, and its paired 95% interval, "
            f"{bounds}, includes zero: this run shows neither a gain nor a loss."
        )
    return (
        f"On the same {_images(value)}, {better} scores {number(abs(value.value))} {metric} points "
        f"{'more' if value.value > 0 else 'less'} than {worse} "
        f"(paired 95%\u00a0interval {bounds})."
    )


def gap_summary(result: Mapping[str, Any]) -> str:
    """Say whether the first alignment drew pairs together, or drew everything together."""
    measured = _measured(result)
    names = ("paired_cosine", "unpaired_cosine", "margin")
    if len(measured) < 2 or not all(name in one.gap for name in names for one in measured[:2]):
        return ""
    before, after = measured[0].gap, measured[1].gap
    paired, unpaired, margin = (after[name].value - before[name].value for name in names)
    start = (
        f"After {measured[1].name}, the paired cosine {_moved(paired)} and the unpaired one "
        f"{_moved(unpaired)}, "
    )
    if margin > 0:
        return (
            start
            + f"so pairs stand out more from the rest than before: the margin {_moved(margin)}."
        )
    return start + (
        f"so pairs stand out no more than before: the margin {_moved(margin)}. "
        "Alignment did not close the gap by this measure."
    )


def moved_measures(result: Mapping[str, Any]) -> list[str]:
    """Say of every alignment which measures came nearer, and which went farther."""
    measured = _measured(result)
    notes = []
    for one in measured[1:]:
        moves: dict[str, list[str]] = {"nearer": [], "farther": []}
        for name, measure in GAP_MEASURES.items():
            if name in one.gap and name in measured[0].gap:
                way = _way(measure.closer, measured[0].gap[name].value, one.gap[name].value)
                if way:
                    moves[way].append(measure.label.partition(",")[0])
        words = [f"{way}: {', '.join(names)}" for way, names in moves.items() if names]
        notes += [f"{one.name}: {'; '.join(words)}."] if words else []
    return notes


def _measured(result: Mapping[str, Any]) -> list[EncoderResult]:
    """Return the encoders whose gaps are before and after; results of one's own need not be."""
    return [] if result.get("gathered") else [one for one in encoders(result) if one.gap]


def _way(closer: str, before: float, after: float) -> str:
    """Say whether a measure came ``nearer`` or went ``farther``; nothing where it stayed."""
    gains = {
        "higher": after - before,
        "lower": before - after,
        "nearer 1": abs(before - 1) - abs(after - 1),
    }
    gain = gains.get(closer, 0.0)
    return "" if not abs(gain) >= 0.0005 else "nearer" if gain > 0 else "farther"


def same_routes(result: Mapping[str, Any]) -> str:
    """Say why real images score the same before and after, where they do."""
    judged = encoders(result)
    scores = [(one.retrieval, one.zeroshot) for one in judged]
    if len(judged) < 2 or not any(scores[0]) or any(one != scores[0] for one in scores[1:]):
        return ""
    if result.get("gathered"):
        return ""
    return (
        "Before and after are equal here because real images go through the frozen encoder: "
        "alignment changes what generated images become and leaves real images alone."
    )


def ceiling(result: Mapping[str, Any]) -> str:
    """Say how far the rows are from the bound, where the recipe names one."""
    metric = headline(result)
    scored = [row for row in scored_rows(result) if metric in row.metrics]
    bounds = [row for row in scored if row.mark == "bound"]
    others = [row for row in scored if row.mark != "bound"]
    if not bounds or not others:
        return ""
    bound = max(bounds, key=lambda row: row.metrics[metric].value)
    best = max(others, key=lambda row: row.metrics[metric].value)
    top, value = bound.metrics[metric].value, best.metrics[metric].value
    if not top > 0:
        return ""
    if value > top:
        return (
            f"{bound.label} should be the ceiling of this task, and {best.label} scores more: this "
            "run is too small to show the ceiling."
        )
    return (
        f"The ceiling of this task is {bound.label}, {number(top)} {metric} points; the best other "
        f"row, {best.label}, reaches {value / top:.0%} of it."
    )


def guard_notes(result: Mapping[str, Any]) -> list[str]:
    """Say which step the guard kept of every alignment."""
    notes = []
    for one in encoders(result):
        if one.best_step is None:
            continue
        if not one.steps:  # a training-free map
            done = "applied" if one.applied else "fitted, and not applied"
            notes.append(f"{one.name}: the map was {done}; nothing was trained.")
            continue
        of = f" of {count(one.steps)}"
        if one.applied:
            notes.append(f"{one.name}: step {count(one.best_step)}{of} was the best and was kept.")
        else:
            why = f"no step{of} was clearly better than none, so the encoder was left as it was"
            notes.append(f"{one.name}: {one.refusal or why}.")
    return notes


def limits(data: ReportData) -> list[str]:
    """Say what the numbers do not show."""
    result = data.result
    notes = []
    seeds, first = result.get("seeds") or 1, result.get("seed")
    if seeds > 1:
        notes.append(
            f"{seeds} seeds. With so few, an interval over seeds comes out too narrow. Curves, "
            "pictures and samples are those of the first seed."
        )
    elif first is not None:
        notes.append(
            f"One seed ({first}). The intervals cover the choice of test images, not the luck of "
            "training."
        )
    scored = scored_rows(result)
    notes += [text for name, text in REMARKS.items() if any(name in r.metrics for r in scored)]
    notes += [
        f"{row.label} is a bound that this learner reaches; it is not a limit of the method."
        for row in scored
        if row.mark == "bound"
    ]
    if data.embeddings:
        notes.append(
            "t-SNE keeps neighbours and bends distances. Its panels are laid out separately, so "
            "places in one mean nothing in another."
        )
    missing = section(result, "unavailable")
    notes += [f"{name} is missing: {reason}" for name, reason in missing.items()]
    return notes + [str(note) for note in result.get("limits") or ()]


def _moved(change: float) -> str:
    if abs(change) < 0.0005:
        return "stayed where it was"
    return f"{'rose' if change > 0 else 'fell'} by {abs(change):.3f}"


def _images(value: Estimate) -> str:
    return f"{count(value.n)} real test images" if value.n else "real test images"


def _test_images(result: Mapping[str, Any]) -> str:
    metric = headline(result)
    values = [row.metrics[metric] for row in scored_rows(result) if metric in row.metrics]
    return _images(values[0]) if values else "real test images"
