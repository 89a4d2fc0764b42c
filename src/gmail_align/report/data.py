"""What a report is made from: plain values, so that the report needs no stage to be importable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmail_align.errors import DataError
from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.names import HEADLINE

Embeddings = NDArray[np.floating[Any]]
CurvePoint = Mapping[str, float]
"""One step of a training: its ``step``, and values by name."""


@dataclass(frozen=True)
class StageSummary:
    """One stage that ran.

    Attributes:
        name: What it is called, in a word or two.
        seconds: Wall time.
        what: One sentence, with counts.
    """

    name: str
    seconds: float
    what: str = ""


@dataclass(frozen=True)
class Curve:
    """The course of one training run.

    Attributes:
        losses: Loss terms, one row a step, each with its ``step``.
        scores: The guard's metrics, one row an evaluation, each with its ``step``.
        best_step: The step whose parameters were kept; None when nothing chose.
    """

    losses: Sequence[CurvePoint] = ()
    scores: Sequence[CurvePoint] = ()
    best_step: int | None = None

    @property
    def steps(self) -> int:
        """The last step; 0 where there is none."""
        return max((int(point["step"]) for point in self.losses), default=0)


@dataclass(frozen=True)
class PairFigure:
    """A real and a generated image of one caption, as encoded image files."""

    caption: str
    real: bytes
    generated: bytes


@dataclass(frozen=True)
class Sample:
    """One test image with its references and each row's caption of it.

    Attributes:
        image: The encoded image file.
        references: What people (or the world's own text) say about it.
        captions: Name of a row -> its caption.
    """

    image: bytes
    references: Sequence[str]
    captions: Mapping[str, str]


@dataclass(frozen=True)
class CaptionedImage:
    """One test image as text: its first reference, and each row's caption of it."""

    image_id: str
    reference: str
    captions: Mapping[str, str]


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows; any part but the title may be missing.

    Attributes:
        title: Title of the page.
        command: The command line that makes the same report again.
        result: The run's result: ``rows``, ``claims``, ``encoders``, ``seconds``, ``seed``,
            ``seeds`` (how many), ``counts`` (name -> number), ``unavailable`` (metric -> why),
            ``limits`` (sentences) and ``gathered`` (of how many results, where no run made them).
            An estimate is ``{"value", "low", "high", "n"}``; scores are fractions as the metrics
            give them, multiplied by 100 only where they are shown.
        stages: The stages that ran, in order.
        curves: Name of an alignment -> the course of its training.
        pairs: Real images next to generated ones.
        embeddings: ``before`` and ``after`` -> real and generated features, (n, d) each.
        embedded: The pair behind each row of ``embeddings``; none where they are not known.
        samples: Test images with captions, in the order to show them.
        captioned: Test images with captions as text, for a table that sorts.
        provenance: Name -> value: versions, fingerprints, protocols, how intervals are computed.
    """

    title: str
    command: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageSummary] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    pairs: Sequence[PairFigure] = ()
    embeddings: Mapping[str, tuple[Embeddings, Embeddings]] = field(default_factory=dict)
    embedded: Sequence[PairFigure] = ()
    samples: Sequence[Sample] = ()
    captioned: Sequence[CaptionedImage] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """One row of a result, as the recipe describes it and the run measured it.

    Attributes:
        name: Its name in the result.
        label: Its name in tables and figures.
        detail: What it stands for.
        mark: ``ours``, ``bound`` (no competitor, but what could be reached) or nothing.
        align: Name of its alignment, or nothing.
        metrics: Metric -> estimate.
        used: Name -> number: ``real_images``, ``generated_images``, ``steps``, ``seconds``.
    """

    name: str
    label: str
    detail: str = ""
    mark: str = ""
    align: str = ""
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    used: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimResult:
    """One claim and its test: the paired difference of two rows."""

    name: str
    better: RowResult
    worse: RowResult
    metric: str
    verdict: str
    metrics: Mapping[str, Estimate]

    @property
    def difference(self) -> Estimate | None:
        """The difference by the claim's own metric."""
        return self.metrics.get(self.metric)


@dataclass(frozen=True)
class EncoderResult:
    """What one encoder is judged by: before alignment, or after one of the recipe's alignments.

    Attributes:
        name: The alignment's name; ``frozen`` before any.
        gap: Measure -> estimate.
        retrieval: Protocol -> metric -> estimate.
        zeroshot: Class set -> accuracy.
        steps: Steps of its training; None where it was not trained.
        best_step: The step that the guard kept, of the first seed.
        applied: Whether the alignment is applied, of the first seed.
        label: Its name in tables, where it is no step of a recipe.
        refusal: Why it is not applied; empty where that is not known.
    """

    name: str
    gap: Mapping[str, Estimate]
    retrieval: Mapping[str, Mapping[str, Estimate]]
    zeroshot: Mapping[str, Estimate]
    steps: int | None = None
    best_step: int | None = None
    applied: bool | None = None
    label: str = ""
    refusal: str = ""


def rows(result: Mapping[str, Any]) -> list[RowResult]:
    """Return the rows of a result in the recipe's order."""
    names = ("real_images", "generated_images", "steps", "seconds")
    return [
        RowResult(
            str(row["name"]),
            str(row.get("label") or row["name"]),
            str(row.get("detail") or ""),
            str(row.get("mark") or ""),
            str(row.get("align") or ""),
            estimates(row, "metrics"),
            {name: row[name] for name in names if row.get(name) is not None},
        )
        for row in _objects(result, "rows")
    ]


def claims(result: Mapping[str, Any]) -> list[ClaimResult]:
    """Return the claims of a result in the recipe's order."""
    known = {row.name: row for row in rows(result)}

    def side(name: str) -> RowResult:
        return known.get(name, RowResult(name, name))

    return [
        ClaimResult(
            str(row["name"]),
            side(row["better"]),
            side(row["worse"]),
            str(row["metric"]),
            str(row["verdict"]),
            estimates(row, "metrics"),
        )
        for row in _objects(result, "claims")
    ]


def encoders(result: Mapping[str, Any]) -> list[EncoderResult]:
    """Return the encoders of a result: before alignment, then each alignment."""
    return [
        EncoderResult(
            str(row["name"]),
            estimates(row, "gap"),
            {name: estimates(row, "retrieval", name) for name in section(row, "retrieval")},
            estimates(row, "zeroshot"),
            row.get("steps"),
            next(iter(row.get("best_steps") or ()), None),
            next(iter(row.get("applied") or ()), None),
            str(row.get("label") or ""),
            next(iter(row.get("refusals") or ()), ""),
        )
        for row in _objects(result, "encoders")
    ]


def not_applied(result: Mapping[str, Any]) -> set[str]:
    """Return the names of the alignments that the guard did not apply."""
    return {one.name for one in encoders(result) if one.applied is False}


def headline(result: Mapping[str, Any]) -> str:
    """Return the metric that rows are compared by: the first claim's, or the usual one."""
    return next((claim.metric for claim in claims(result)), HEADLINE)


def _objects(result: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = result.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise DataError(f"{name} of the result is {value!r}: a list of objects is needed")
    return value


def section(result: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return the object at ``names`` of a result; empty where it is missing.

    Raises:
        DataError: there is something else.
    """
    value: Any = result
    for name in names:
        value = value.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise DataError(f"{'.'.join(names)} of the result is {value!r}: an object is needed")
    return dict(value)


def estimates(result: Mapping[str, Any], *names: str) -> dict[str, Estimate]:
    """Return the estimates of the object at ``names``, by metric."""
    where = ".".join(names)
    return {
        name: estimate(value, f"{where}.{name}")
        for name, value in section(result, *names).items()
        if value is not None
    }


def estimate(value: Any, where: str) -> Estimate:
    """Read one estimate; bounds that are unknown become NaN, an unknown number of images 0.

    Raises:
        DataError: it is neither a number nor an object with a ``value``.
    """
    fields = value if isinstance(value, Mapping) else {"value": value}
    try:
        numbers = _number(fields["value"]), _number(fields.get("low")), _number(fields.get("high"))
        return Estimate(*numbers, n=int(fields.get("n") or 0))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} of the result is {value!r}: a number or "
            '{"value", "low", "high", "n"} is needed'
        ) from error


def has_interval(value: Estimate) -> bool:
    """Say whether both bounds are known."""
    return math.isfinite(value.low) and math.isfinite(value.high)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
