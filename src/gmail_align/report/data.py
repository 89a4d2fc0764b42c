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

Embeddings = NDArray[np.floating[Any]]
Row = Mapping[str, float]


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

    losses: Sequence[Row] = ()
    scores: Sequence[Row] = ()
    best_step: int | None = None


@dataclass(frozen=True)
class PairFigure:
    """A real and a generated image of one caption, as encoded image files."""

    caption: str
    real: bytes
    generated: bytes


@dataclass(frozen=True)
class Sample:
    """One test image with its references and what each captioner made of it.

    Attributes:
        image: The encoded image file.
        references: What people (or the world's own text) say about it.
        captions: Captioner name -> its caption.
    """

    image: bytes
    references: Sequence[str]
    captions: Mapping[str, str]


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows; any part but the title may be missing.

    Attributes:
        title: Title of the page.
        command: The command line that makes the same report again.
        result: The demo's result: ``captioning``, ``paired``, ``gap``, ``retrieval``, ``zeroshot``,
            ``seconds``, ``seed``, ``seeds`` (how many), ``real_images``, ``alignment``, ``counts``
            (name -> number), ``unavailable`` (metric -> why) and ``limits`` (sentences). An
            estimate is ``{"value", "low", "high", "n"}``; scores are fractions as the metrics give
            them, multiplied by 100 only where they are shown.
        stages: The stages that ran, in order.
        curves: Training run -> its course.
        pairs: Real beside generated.
        embeddings: ``before`` and ``after`` -> real and generated features, (n, d) each.
        samples: Test images with captions, in the order to show them.
        provenance: Name -> value: versions, fingerprints, protocols, how intervals are computed.
    """

    title: str
    command: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageSummary] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    pairs: Sequence[PairFigure] = ()
    embeddings: Mapping[str, tuple[Embeddings, Embeddings]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)


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


def has_interval(found: Estimate) -> bool:
    """Say whether both bounds are known."""
    return math.isfinite(found.low) and math.isfinite(found.high)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
