"""Predicted captions against human ones: one captioner, several side by side, or several seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact
from gmail_align.data.model_outputs import Predictions, open_predictions
from gmail_align.data.protocols import PROTOCOLS, captions_each
from gmail_align.data.references import References, first_captions, open_references
from gmail_align.errors import DataError, listed
from gmail_align.evaluation.clipscore import ClipEncoder, ClipFiles, clip_features
from gmail_align.items import Items
from gmail_align.metrics.caption_scores import (
    CaptionScores,
    WordVectors,
    compare_captioners,
    paired_caption_difference,
)
from gmail_align.metrics.statistics import over_runs
from gmail_align.results import WIDENED, Result, begin_result, estimate_table

_BLANK = "."
"""Stands for a caption without text: the tokenizer drops it, so it scores nothing."""


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are scored.

    Attributes:
        protocol: Name kept with the numbers; that of a known protocol asserts its counts.
        subset: Whether the references are declared a part of the protocol's.
        metrics: Which of :data:`gmail_align.metrics.caption_scores.CAPTION_METRICS`; None for all
            that what is given allows.
        partial: Score only the images that every captioner predicted; else each image of the
            references needs a prediction.
        word_vectors: What WMD measures with.
        clip: Where CLIPScore's features come from.
        seed: Of the bootstrap.
    """

    protocol: str = "captions"
    subset: bool = False
    metrics: Sequence[str] | None = None
    partial: bool = False
    word_vectors: WordVectors | None = field(default=None, repr=False)
    clip: ClipFiles | ClipEncoder | None = None
    seed: int = 0

    @property
    def declares_part(self) -> bool:
        """Whether a known protocol's name may stand for a part of its set."""
        return self.subset or (self.partial and self.protocol in PROTOCOLS)

    def identity(self) -> dict[str, Any]:
        """Return what the numbers depend on, besides the inputs, as JSON values."""
        vectors = self.word_vectors
        return {
            "metrics": None if self.metrics is None else list(self.metrics),
            "partial": self.partial,
            "word_vectors": None if vectors is None else [vectors.source, vectors.normalise],
            "clip": None if self.clip is None else self.clip.identity(),
        }


def score(
    systems: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    options: CaptionOptions,
    order: Sequence[str] | None = None,
) -> dict[str, CaptionScores]:
    """Score captioners on the same images; an empty caption scores nothing.

    Args:
        systems: Captioner -> image id -> caption.
        references: Image id -> human captions, for exactly the same images.
        options: How.
        order: The image of every reference feature of CLIPScore, where files give them.

    Raises:
        UserError: images are missing or unknown, or a reference is empty.
        MissingExtraError: pycocoevalcap or Java is not installed.
    """
    filled = {
        name: {i: t.strip() or _BLANK for i, t in own.items()} for name, own in systems.items()
    }
    clip = None
    if options.clip is not None:
        clip = clip_features(options.clip, systems, references, order)
    return compare_captioners(
        filled,
        references,
        metrics=options.metrics,
        word_vectors=options.word_vectors,
        clip=clip,
        seed=options.seed,
    )


def evaluate_captions(
    systems: Mapping[str, Path | Artifact],
    references: Path | Artifact,
    out: Path | None = None,
    options: CaptionOptions | None = None,
    *,
    paired: Sequence[tuple[str, str]] = (),
) -> Result:
    """Score captioners on the same images.

    The result's ``metrics`` are those of a single captioner. It also holds ``systems`` (captioner
    -> metric -> estimate), ``paired`` (``"a - b"`` -> metric -> estimate), ``empty`` (captioner ->
    predictions without text, which score nothing) and what WMD measured with (``word_vectors``).

    Args:
        systems: Captioner -> its predictions.
        references: Human captions.
        out: Folder of the result; None keeps nothing.
        options: How.
        paired: Which captioners are compared: (a, b) gives a - b on the same images.

    Raises:
        DataError: ``paired`` names an unknown captioner, an image does not have a prediction or
            references, or see :func:`gmail_align.results.begin_result`.
        UserError: a reference is empty, or a metric is unknown.
    """
    options = options or CaptionOptions()
    _require_captioners(paired, systems)
    read = {name: open_predictions(source) for name, source in systems.items()}
    given = open_references(references)
    human, texts = _matched(read, given, options)
    result = begin_result(
        out,
        {**read, "references": given},
        {**options.identity(), "systems": list(systems), "paired": [list(pair) for pair in paired]},
        protocol=options.protocol,
        task="captions",
        n=_counts(human),
        subset=options.declares_part,
        seed=options.seed,
    )
    if result.complete is not None:
        return result.complete
    scores = score(texts, human, options, [image for image, _ in given.rows])
    details: dict[str, Any] = {
        "systems": {name: estimate_table(own.metrics) for name, own in scores.items()},
        "paired": _differences(scores, paired, options.seed),
        "empty": {name: sum(not t.strip() for t in own.values()) for name, own in texts.items()},
    }
    vectors = options.word_vectors
    if vectors is not None and any("WMD" in own.metrics for own in scores.values()):
        details["word_vectors"] = {"source": vectors.source, "unit_length": vectors.normalise}
    alone = len(scores) == 1
    metrics = next(iter(scores.values())).metrics if alone else {}
    items = {
        "" if alone else name: Items(result.protocol, own.image_ids, own.columns)
        for name, own in scores.items()
    }
    lost = _unavailable(scores)
    return result.finish(metrics, items=items, unavailable=lost, details=details)


def evaluate_seeds(
    runs: Sequence[Mapping[str, Path | Artifact]],
    references: Path | Artifact,
    out: Path | None = None,
    options: CaptionOptions | None = None,
    *,
    paired: Sequence[tuple[str, str]] = (),
) -> Result:
    """Score every captioner of every run on the same images.

    Values and intervals are those of :func:`gmail_align.metrics.statistics.over_runs`. The result
    holds ``systems`` and ``paired`` as :func:`evaluate_captions` does, and ``per_seed``: captioner
    -> metric -> each run's value.

    Args:
        runs: One mapping a seed: captioner -> predictions; the same captioners in each.
        references: Human captions.
        out: Folder of the result; None keeps nothing.
        options: How.
        paired: (a, b) pairs of captioners: the difference a - b on the same images and seeds.

    Raises:
        DataError: the runs hold different captioners, or see :func:`evaluate_captions`.
        UserError: see :func:`evaluate_captions`.
    """
    options = options or CaptionOptions()
    names = list(runs[0])
    if any(list(run) != names for run in runs):
        raise DataError("every seed must have the same captioners: run the missing ones")
    sources = {_key(name, number): run[name] for number, run in enumerate(runs) for name in names}
    read = {key: open_predictions(source) for key, source in sources.items()}
    given = open_references(references)
    human, texts = _matched(read, given, options)
    result = begin_result(
        out,
        {**read, "references": given},
        {
            **options.identity(),
            "paired": [list(pair) for pair in paired],
            **({"interval": WIDENED} if len(runs) > 1 else {}),
        },
        protocol=options.protocol,
        task="captions",
        n={**_counts(human), "seeds": len(runs)},
        subset=options.declares_part,
        seed=options.seed,
    )
    if result.complete is not None:
        return result.complete
    scores = score(texts, human, options)
    table = {name: [scores[_key(name, i)] for i in range(len(runs))] for name in names}
    seed = options.seed
    details = {
        "systems": {name: _over_runs(own, None, seed) for name, own in table.items()},
        "paired": {f"{a} - {b}": _over_runs(table[a], table[b], seed) for a, b in paired},
        "per_seed": {name: _per_seed(own) for name, own in table.items()},
    }
    return result.finish({}, unavailable=_unavailable(scores), details=details)


def _require_captioners(paired: Sequence[tuple[str, str]], systems: Collection[str]) -> None:
    unknown = sorted({name for pair in paired for name in pair} - set(systems))
    if unknown:
        raise DataError(f"{unknown[0]!r} is not one of the captioners {', '.join(systems)}")


def _matched(
    systems: Mapping[str, Predictions], references: References, options: CaptionOptions
) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """Return the references of the images that are scored, and each captioner's texts of them."""
    rows = first_captions(references.rows, captions_each(options.protocol))
    human = References(rows, references.fingerprint).by_image()
    for name, own in systems.items():
        unknown = [image for image in own.texts if image not in human]
        missing = [] if options.partial else [image for image in human if image not in own.texts]
        told = [
            f"there are no {what} for {listed(images, 'image')}"
            for what, images in (("predictions", missing), ("references", unknown))
            if images
        ]
        if told:
            hint = ": give the others, or --partial" if missing else ""
            raise DataError(f"{name}: {'; '.join(told)}{hint}")
    kept = {
        image: texts
        for image, texts in human.items()
        if all(image in own.texts for own in systems.values())
    }
    if not kept:
        raise DataError("there is nothing to score: no image has a prediction of every captioner")
    return kept, {
        name: {image: text for image, text in own.texts.items() if image in kept}
        for name, own in systems.items()
    }


def _counts(human: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {"images": len(human), "references": sum(map(len, human.values()))}


def _differences(
    scores: Mapping[str, CaptionScores], paired: Sequence[tuple[str, str]], seed: int
) -> dict[str, Any]:
    """Return ``a - b`` -> metric -> estimate."""
    tables = {}
    for first, second in paired:
        a, b = scores[first], scores[second]
        shared = [metric for metric in a.metrics if metric in b.metrics]
        apart = {metric: paired_caption_difference(a, b, metric, seed=seed) for metric in shared}
        tables[f"{first} - {second}"] = estimate_table(apart)
    return tables


def _unavailable(scores: Mapping[str, CaptionScores]) -> dict[str, str]:
    return {metric: why for own in scores.values() for metric, why in own.unavailable.items()}


def _key(name: str, number: int) -> str:
    return f"{name}@{number}"


def _over_runs(
    first: Sequence[CaptionScores], second: Sequence[CaptionScores] | None, seed: int
) -> dict[str, Any]:
    """Estimate every metric of one captioner, or of the difference of two."""
    others = None if second is None else [own.columns for own in second]
    return estimate_table(over_runs([own.columns for own in first], others, seed=seed))


def _per_seed(scores: Sequence[CaptionScores]) -> dict[str, list[float]]:
    return {metric: [own.metrics[metric].value for own in scores] for metric in scores[0].metrics}
