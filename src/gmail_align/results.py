"""The one format of a result: a named protocol, estimates, and what they rest on.

``result.json`` holds ``protocol``, ``metrics`` (name -> value), ``intervals`` (name -> [low,
high]), ``units`` (name -> how many images or questions the interval resamples), ``n`` (how many of
each kind were scored), ``seed``, ``unavailable`` (metric -> why), what only one protocol has,
``features`` (role -> encoder, weights and route) and ``fingerprints`` (role -> identity of the
input). Tables in it, such as ``systems``, hold whole estimates (``value``, ``low``, ``high`` and
``n``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from gmail_align.artifacts import Artifact, Draft, begin, load, write_json
from gmail_align.data.protocols import Task, result_name
from gmail_align.errors import ArtifactError, DataError, damage_explained
from gmail_align.extras import require
from gmail_align.items import Items, items_name, write_items
from gmail_align.metrics.bootstrap import Estimate

if TYPE_CHECKING:
    from pandas import DataFrame

RESULT: Final = "result.json"
WIDENED: Final = "widened for few runs"
"""What scores of several seeds note of how their intervals are made."""
_TEXT_ROLES: Final = ("texts", "classes")
_WRITTEN: Final = {
    *("protocol", "metrics", "intervals", "units", "n", "seed", "unavailable"),
    *("features", "fingerprints"),
}


class Input(Protocol):
    """Something that a result rests on."""

    @property
    def fingerprint(self) -> str:
        """Identity of its content."""


@runtime_checkable
class EncodedInput(Protocol):
    """Features, which know what made them: ``what``, ``encoder``, ``weights`` and ``route``."""

    @property
    def made_with(self) -> Mapping[str, str]:
        """What made them, as far as it is known."""

    @property
    def name(self) -> str:
        """Where they come from."""


@dataclass(frozen=True, repr=False)
class Result:
    """A result.

    Attributes:
        protocol: The name that the numbers carry.
        n: How many of each kind were scored.
        metrics: Name -> estimate.
        seed: Of the bootstrap.
        unavailable: Metric that was asked for and not computed -> why.
        details: What only this protocol has, as JSON values.
        made_with: Role -> encoder, weights and route of its features.
        fingerprints: Role -> identity of the input.
        items: Captioner (or ``""``) -> what each image or question adds; empty when read back.
        artifact: Where it is kept; None if it is not.
        seconds: Wall time.
    """

    protocol: str
    n: Mapping[str, int]
    metrics: Mapping[str, Estimate]
    seed: int = 0
    unavailable: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, Items] = field(default_factory=dict, repr=False, compare=False)
    artifact: Artifact | None = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)

    def __repr__(self) -> str:
        metrics = [
            f"{name} {one.value:.4g} [{one.low:.4g}, {one.high:.4g}]"
            for name, one in self.metrics.items()
        ]
        counts = ", ".join(f"{count} {name}" for name, count in self.n.items())
        return f"Result({self.protocol} on {counts}: {', '.join(metrics)})"

    def to_pandas(self) -> DataFrame:
        """Return a table with one row for each metric: its value, 95% interval and units.

        Raises:
            MissingExtraError: pandas is not installed.

        Example:
            >>> table = load("scores/captions").to_pandas()
            >>> list(table.columns), list(table["metric"])
            (['protocol', 'metric', 'value', 'low', 'high', 'n'], ['CIDEr'])
        """
        rows = estimate_table(self.metrics).items()
        table = [{"protocol": self.protocol, "metric": name, **row} for name, row in rows]
        frame: DataFrame = require("pandas", "pandas").DataFrame(table)
        return frame

    def to_json(self) -> dict[str, Any]:
        """Return what ``result.json`` holds; an undefined number is null."""
        return {
            "protocol": self.protocol,
            "metrics": {name: _finite(one.value) for name, one in self.metrics.items()},
            "intervals": {
                name: [_finite(one.low), _finite(one.high)] for name, one in self.metrics.items()
            },
            "units": {name: one.n for name, one in self.metrics.items()},
            "n": dict(self.n),
            "seed": self.seed,
            "unavailable": dict(self.unavailable),
            **self.details,
            "features": {role: dict(made) for role, made in self.made_with.items()},
            "fingerprints": dict(self.fingerprints),
        }


def estimate_table(metrics: Mapping[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    """Return name -> ``{value, low, high, n}`` as JSON values; an undefined number is null."""
    return {
        name: {
            "value": _finite(one.value),
            "low": _finite(one.low),
            "high": _finite(one.high),
            "n": one.n,
        }
        for name, one in metrics.items()
    }


def read_result(source: Path | Artifact) -> Result:
    """Read a result that was kept.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    artifact = source if isinstance(source, Artifact) else load(source)
    if artifact.kind != "result":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}, but a result is needed here")
    advice = f"delete {artifact.folder} and evaluate again"
    with damage_explained(artifact.path(RESULT), ArtifactError, advice):
        body = json.loads(artifact.path(RESULT).read_text(encoding="utf-8"))
        intervals, units = body["intervals"], body["units"]
        metrics = {
            name: Estimate(
                _number(value),
                _number(intervals[name][0]),
                _number(intervals[name][1]),
                units[name],
            )
            for name, value in body["metrics"].items()
        }
        return Result(
            body["protocol"],
            body["n"],
            metrics,
            body["seed"],
            body["unavailable"],
            {name: value for name, value in body.items() if name not in _WRITTEN},
            body["features"],
            body["fingerprints"],
            artifact=artifact,
            seconds=artifact.manifest.get("seconds", 0.0),
        )


@dataclass
class ResultDraft:
    """A result being made; ``complete`` is the result if there is nothing left to do."""

    protocol: str
    n: Mapping[str, int]
    seed: int
    inputs: Mapping[str, Input]
    draft: Draft | None
    complete: Result | None = None
    _start: float = field(default_factory=time.monotonic)

    def finish(
        self,
        metrics: Mapping[str, Estimate],
        *,
        items: Mapping[str, Items] | None = None,
        unavailable: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
        write_page: Callable[[Result, Path], object] | None = None,
    ) -> Result:
        """Write the result, where a folder was given, and return it.

        Args:
            metrics: Name -> estimate.
            items: Captioner (or ``""``) -> what each image or question adds.
            unavailable: Metric -> why it could not be computed.
            details: What only this protocol has, as JSON values.
            write_page: Writes a page about the result into its folder before that is complete.
        """
        result = Result(
            self.protocol,
            self.n,
            metrics,
            self.seed,
            unavailable or {},
            details or {},
            {role: dict(made) for role, made in _made_with(self.inputs).items()},
            {role: one.fingerprint for role, one in self.inputs.items()},
            items or {},
            seconds=round(time.monotonic() - self._start, 3),
        )
        if self.draft is None:
            return result
        for name, own in result.items.items():
            write_items(self.draft.path(items_name(name)), own)
        write_json(self.draft.path(RESULT), result.to_json())
        if write_page is not None:
            write_page(result, self.draft.folder)
        artifact = self.draft.finish(self.n)
        return replace(result, artifact=artifact, seconds=artifact.manifest["seconds"])


def begin_result(
    out: Path | None,
    inputs: Mapping[str, Input],
    settings: Mapping[str, Any],
    *,
    protocol: str,
    task: Task | None,
    n: Mapping[str, int],
    subset: bool = False,
    seed: int = 0,
) -> ResultDraft:
    """Check what a result is to be made of, and open its folder.

    Args:
        out: Folder of the result; None keeps nothing.
        inputs: Role -> what the result rests on. Roles ``texts`` and ``classes`` are features of
            texts, all other features are of images.
        settings: Everything else that the numbers depend on, as JSON values.
        protocol: Name to be kept with the numbers. That of a known protocol asserts its counts.
        task: What is scored; None if ``protocol`` is a label only.
        n: How many of each kind are scored.
        subset: Whether they are declared a part of the protocol's set.
        seed: Of the bootstrap.

    Raises:
        DataError: features of different encoders meet, features of texts are given as images or
            the other way round, adapted texts meet frozen images, or the counts are not the
            protocol's.
        ArtifactError: the folder holds something else, or a result of other inputs.
    """
    _require_one_encoder(_encoded(inputs))
    name = protocol if task is None else result_name(protocol, task, n, subset=subset)
    if out is None:
        return ResultDraft(name, n, seed, inputs, None)
    prints = {role: one.fingerprint for role, one in inputs.items()}
    draft = begin(out, "result", {"protocol": name, **settings}, prints, seed)
    complete = None if draft.complete is None else read_result(draft.complete)
    return ResultDraft(name, n, seed, inputs, draft, complete)


def _encoded(inputs: Mapping[str, Input]) -> dict[str, EncodedInput]:
    return {role: one for role, one in inputs.items() if isinstance(one, EncodedInput)}


def _made_with(inputs: Mapping[str, Input]) -> dict[str, Mapping[str, str]]:
    return {role: one.made_with for role, one in _encoded(inputs).items() if one.made_with}


def _require_one_encoder(features: Mapping[str, EncodedInput]) -> None:
    """Check that all features come from one encoder, and that texts fit the images."""
    for role, one in features.items():
        of_texts = one.made_with.get("what") == "text"
        if one.made_with.get("what") and of_texts != (role in _TEXT_ROLES):
            holds, needed = ("texts", "images") if of_texts else ("images", "texts")
            raise DataError(
                f"{one.name} holds features of {holds}, but {role} need features of {needed}"
            )
    known = [one for one in features.values() if one.made_with.get("encoder")]
    for one in known[1:]:
        if one.made_with["encoder"] != known[0].made_with["encoder"]:
            raise DataError(
                f"{known[0].name} and {one.name} come from different encoders "
                f"({known[0].made_with['encoder']} and {one.made_with['encoder']}): extract both "
                "with one encoder"
            )
    texts = [one for role, one in features.items() if role in _TEXT_ROLES]
    images = [one for role, one in features.items() if role not in _TEXT_ROLES]
    for text in texts:
        for image in images:
            _require_fitting_route(image, text)


def _require_fitting_route(image: EncodedInput, text: EncodedInput) -> None:
    """Check that texts of an adapted text tower do not meet images of the frozen encoder."""
    routes = [one.made_with.get("route", "") for one in (image, text)]
    adapted = text.made_with.get("weights") != text.made_with.get("encoder")
    if routes[0] == "frozen" and routes[1] not in ("", "frozen") and adapted:
        raise DataError(
            f"{image.name} holds images by the frozen route and {text.name} texts by the route "
            f"{routes[1]!r}: extract both by one route"
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
