"""The stage: score predicted captions against human ones, several captioners side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, Draft, begin, fingerprint, read_jsonl, write_json
from gmail_align.errors import ArtifactError, DataError
from gmail_align.evaluation.items import Items, items_name, write_items
from gmail_align.evaluation.result import RESULT, plain
from gmail_align.metrics.captions import (
    METRICS,
    CaptionScores,
    compare_captioners,
    index_predictions,
    paired_caption_difference,
)

PREDICTIONS = "predictions.jsonl"
_BLANK = "."
"""Stands for a caption without text: the tokenizer drops it, so it scores nothing."""


def evaluate_captions(
    systems: Mapping[str, Artifact],
    references: Mapping[str, Sequence[str]],
    out: Path,
    *,
    protocol: str,
    paired: Sequence[tuple[str, str]] = (),
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
) -> Artifact:
    """Score captioners on the same images; returns an artifact of kind ``result``.

    ``result.json`` holds ``protocol``, ``systems`` (name -> metric -> ``value``, ``low``, ``high``,
    ``n``), ``paired`` (``"a - b"`` -> metric -> the same), ``n``, ``seed``, ``unavailable``
    (metric -> why), ``empty`` (name -> predictions without text, which score nothing) and
    ``fingerprints``; with one system also its ``metrics``. Items are kept for comparisons.

    Args:
        systems: Name -> predictions.
        references: Image id -> human captions; the predictions of every system must cover exactly
            these images.
        out: Folder of the result.
        protocol: Name of the protocol, such as ``coco_karpathy_test``.
        paired: Which systems are compared: (a, b) gives a - b on the same images.
        metrics: Which of :data:`gmail_align.metrics.captions.METRICS`.
        seed: Of the bootstrap.

    Raises:
        ArtifactError: a system is no artifact of predictions.
        DataError: ``paired`` names an unknown system.
        UserError: images are missing or unknown, or a reference is empty.
        MissingExtraError: pycocoevalcap or Java is not installed.
    """
    unknown = sorted({name for pair in paired for name in pair} - systems.keys())
    if unknown:
        raise DataError(f"there is no captioner {unknown[0]!r} to compare: {', '.join(systems)}")
    identity = {
        "protocol": protocol,
        "references": fingerprint({name: list(texts) for name, texts in references.items()}),
        "systems": list(systems),
        "paired": [list(pair) for pair in paired],
        "metrics": list(metrics),
    }
    draft = begin(out, "result", identity, systems, seed)
    if draft.complete is not None:
        return draft.complete
    texts = {name: _read(artifact) for name, artifact in systems.items()}
    filled = {name: {i: t or _BLANK for i, t in own.items()} for name, own in texts.items()}
    scores = compare_captioners(filled, references, metrics=metrics, seed=seed)
    body = {
        "protocol": protocol,
        **score_tables(scores, paired, seed=seed),
        "n": {"images": len(references), "references": sum(map(len, references.values()))},
        "seed": seed,
        "empty": {name: sum(not text for text in own.values()) for name, own in texts.items()},
        "fingerprints": {name: artifact.fingerprint for name, artifact in systems.items()},
    }
    _keep_items(draft, scores, protocol)
    write_json(draft.path(RESULT), body)
    return draft.finish({"images": len(references), "systems": len(systems)})


def _keep_items(draft: Draft, scores: Mapping[str, CaptionScores], protocol: str) -> None:
    for name, own in scores.items():
        items = Items(protocol, own.image_ids, own.columns)
        write_items(draft.path(items_name(name, len(scores))), items)


def score_tables(
    scores: Mapping[str, CaptionScores], paired: Sequence[tuple[str, str]], *, seed: int
) -> dict[str, Any]:
    """Lay out scores and paired differences as JSON values."""
    systems = {name: plain(own.metrics) for name, own in scores.items()}
    tables: dict[str, Any] = {"systems": systems, "paired": {}, "unavailable": {}}
    for own in scores.values():
        tables["unavailable"] |= own.unavailable
    for first, second in paired:
        a, b = scores[first], scores[second]
        shared = [metric for metric in a.metrics if metric in b.metrics]
        apart = {metric: paired_caption_difference(a, b, metric, seed=seed) for metric in shared}
        tables["paired"][f"{first} - {second}"] = plain(apart)
    if len(systems) == 1:
        tables["metrics"] = next(iter(systems.values()))
    return tables


def _read(artifact: Artifact) -> dict[str, str]:
    """Return image id -> caption of an artifact of predictions."""
    if artifact.kind != "predictions":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}: predictions are needed here")
    rows = read_jsonl(artifact.path(PREDICTIONS))
    return index_predictions((row["image_id"], row["text"].strip()) for row in rows)


def read_for_scoring(artifact: Artifact) -> dict[str, str]:
    """Return image id -> caption, with a mark that scores nothing where a caption has no text.

    Raises:
        ArtifactError: it is no artifact of predictions.
    """
    return {image_id: text or _BLANK for image_id, text in _read(artifact).items()}
