"""The stage: score captioners that were trained several times, over images and seeds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gmail_align.artifacts import Artifact, begin, fingerprint, write_json
from gmail_align.errors import DataError
from gmail_align.evaluation.captions import read_for_scoring
from gmail_align.evaluation.result import RESULT, plain
from gmail_align.metrics.bootstrap import Estimate, Values, interval, resample_weights
from gmail_align.metrics.captions import METRICS, CaptionScores, compare_captioners

RESAMPLES = 1000
SEEDED_METRICS = METRICS
"""All of them: what cannot be computed is listed as unavailable, with the reason."""


def evaluate_seeds(
    runs: Sequence[Mapping[str, Artifact]],
    references: Mapping[str, Sequence[str]],
    out: Path,
    *,
    protocol: str,
    paired: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> Artifact:
    """Score every captioner of every run on the same images; an artifact of kind ``result``.

    A value is the mean over runs of the corpus value. Its interval resamples images and, where
    there are several, runs (crossed bootstrap; Owen 2007). ``per_seed`` has each run's values.

    Args:
        runs: One mapping a seed: captioner -> predictions; the same captioners in each.
        references: Image id -> human captions.
        out: Folder of the result.
        protocol: Name of the protocol.
        paired: (a, b) pairs of captioners: the difference a - b on the same images and seeds.
        seed: Of the bootstrap.

    Raises:
        DataError: the runs hold different captioners.
        UserError: images are missing or unknown.
    """
    names = list(runs[0])
    if any(list(run) != names for run in runs):
        raise DataError("every seed must have the same captioners: run the missing ones")
    inputs = {_key(name, number): run[name] for number, run in enumerate(runs) for name in names}
    identity = {
        "protocol": protocol,
        "references": fingerprint({name: list(texts) for name, texts in references.items()}),
        "paired": [list(pair) for pair in paired],
    }
    draft = begin(out, "result", identity, inputs, seed)
    if draft.complete is not None:
        return draft.complete
    texts = {key: read_for_scoring(artifact) for key, artifact in inputs.items()}
    scores = compare_captioners(texts, references, metrics=SEEDED_METRICS, seed=seed)
    table = {name: [scores[_key(name, i)] for i in range(len(runs))] for name in names}
    weights = _weights(len(references), len(runs), seed)
    body = {
        "protocol": protocol,
        "systems": {name: _estimates(own, None, weights) for name, own in table.items()},
        "paired": {f"{a} - {b}": _estimates(table[a], table[b], weights) for a, b in paired},
        "per_seed": {name: _per_seed(own) for name, own in table.items()},
        "n": {"images": len(references), "seeds": len(runs)},
        "seed": seed,
        "unavailable": scores[_key(names[0], 0)].unavailable,
        "fingerprints": {key: artifact.fingerprint for key, artifact in inputs.items()},
    }
    write_json(draft.path(RESULT), body)
    return draft.finish({"images": len(references), "systems": len(names), "seeds": len(runs)})


def _key(name: str, number: int) -> str:
    return f"{name}@{number}"


def _weights(images: int, runs: int, seed: int) -> tuple[Values, Values]:
    """Draw how often each image and each run stands in each resample."""
    rng = np.random.default_rng(seed)
    of_images = resample_weights(rng, RESAMPLES, images)
    return of_images, resample_weights(rng, RESAMPLES, runs) / runs


def _estimates(
    first: Sequence[CaptionScores],
    second: Sequence[CaptionScores] | None,
    weights: tuple[Values, Values],
) -> dict[str, Any]:
    """Estimate every metric of one captioner, or of the difference of two."""
    of_images, of_runs = weights
    found: dict[str, Estimate] = {}
    for metric in first[0].metrics:
        value = float(np.mean([own.metrics[metric].value for own in first]))
        columns = np.stack([own.columns[metric].on(of_images) for own in first], axis=1)
        if second is not None:
            value -= float(np.mean([own.metrics[metric].value for own in second]))
            columns -= np.stack([own.columns[metric].on(of_images) for own in second], axis=1)
        found[metric] = interval(value, (columns * of_runs).sum(axis=1), of_images.shape[1])
    return plain(found)


def _per_seed(scores: Sequence[CaptionScores]) -> dict[str, list[float]]:
    return {metric: [own.metrics[metric].value for own in scores] for metric in scores[0].metrics}
