"""Collect what a report shows from the work folder of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmail_align.artifacts import load, read_jsonl
from gmail_align.data.captions import read_captions
from gmail_align.data.images import ImageStore
from gmail_align.data.pairs import read_pairs
from gmail_align.features.store import open_features
from gmail_align.report.data import Curve, Embeddings, PairFigure, ReportData, Sample, StageSummary
from gmail_align.runtime import versions

PAIRS_SHOWN, SAMPLES_SHOWN, POINTS_SHOWN = 8, 8, 500

_STAGES = {
    "world": ("Draw the world", "{real_images} real training images with five captions each."),
    "captions": ("Choose captions", "One part of the captions is used to generate images."),
    "images": (
        "Import and synthesise",
        "{generated_images} images generated from {captions} captions; all images are in shards.",
    ),
    "pairs": ("Pair", "Each generated image is paired with the real image of its caption."),
    "features": (
        "Extract features",
        "Every image once for each set of weights that it goes through.",
    ),
    "encoder": ("Align", "An adapter and two heads, with the guard choosing the step."),
    "captioner": ("Train captioners", "The same captioner, budget and seed for every row."),
    "predictions": ("Caption", "{test_images} real test images, captioned by every captioner."),
    "result": ("Measure", "Gap, retrieval, zero-shot classification and captions."),
}
"""Kind of artifact -> name of the step that makes it, and what it did."""


def gather_report(title: str, command: str, work: Path, result: Mapping[str, Any]) -> ReportData:
    """Read figures, curves and samples of the run's first seed."""
    home = work / "seed-0"
    curves = {folder.name: _curve(folder) for folder in sorted((home / "encoders").iterdir())}
    return ReportData(
        title=title,
        command=command,
        result=result,
        stages=_stages(result),
        curves=curves,
        pairs=_pairs(work),
        embeddings=_embeddings(work, home),
        samples=_samples(work, home),
        provenance=_provenance(result),
    )


def _stages(result: Mapping[str, Any]) -> list[StageSummary]:
    seconds, counts = result["seconds"], result["counts"]
    return [
        StageSummary(name, seconds[kind], what.format(**counts))
        for kind, (name, what) in _STAGES.items()
        if kind in seconds
    ]


def _curve(folder: Path) -> Curve:
    rows: dict[str, list[dict[str, float]]] = {"loss": [], "score": []}
    for row in read_jsonl(folder / "events.jsonl"):
        rows[row.pop("event")].append(row)
    return Curve(rows["loss"], rows["score"], load(folder).manifest["notes"]["best_step"])


def _pairs(work: Path) -> list[PairFigure]:
    """Return the first pairs that no training saw."""
    real = ImageStore(load(work / "real" / "val" / "images"))
    generated = ImageStore(load(work / "generated" / "val"))
    return [
        PairFigure(
            row.text,
            real.read_bytes(row.real_image_id),
            generated.read_bytes(row.generated_image_id),
        )
        for row in read_pairs(load(work / "pairs" / "val"))[:PAIRS_SHOWN]
    ]


def _embeddings(work: Path, home: Path) -> dict[str, tuple[Embeddings, Embeddings]]:
    rows = read_pairs(load(work / "pairs" / "val"))[:POINTS_SHOWN]
    real = open_features(work / "features" / "frozen" / "real-val")
    frozen = work / "features" / "frozen" / "generated-val"
    aligned = home / "features" / "generated_gmail" / "generated-val"
    place = real.rows([row.real_image_id for row in rows])
    found: dict[str, tuple[Embeddings, Embeddings]] = {}
    for name, folder in (("before", frozen), ("after", aligned)):
        generated = open_features(folder)
        own = generated.rows([row.generated_image_id for row in rows])
        found[name] = (real.array[place].numpy(), generated.array[own].numpy())
    return found


def _samples(work: Path, home: Path) -> list[Sample]:
    """Return the first test images by id, with references and every captioner's caption."""
    store = ImageStore(load(work / "real" / "test" / "images"))
    references: dict[str, list[str]] = {}
    for row in read_captions(load(work / "real" / "test" / "captions")):
        references.setdefault(row.image_id, []).append(row.text)
    predicted = {
        folder.name: {
            row["image_id"]: row["text"] for row in read_jsonl(folder / "predictions.jsonl")
        }
        for folder in sorted((home / "predictions").iterdir())
    }
    return [
        Sample(
            store.read_bytes(name),
            references[name],
            {system: texts[name] for system, texts in predicted.items()},
        )
        for name in store.ids[:SAMPLES_SHOWN]
    ]


def _provenance(result: Mapping[str, Any]) -> dict[str, str]:
    found = {f"version of {name}": value for name, value in versions().items()}
    found["protocol"] = str(result["protocol"])
    found["seeds"] = f"{result['seeds']}, from {result['seed']} on"
    found["intervals"] = (
        "95% percentile bootstrap over test images (and over seeds where there are several), "
        "1,000 resamples"
    )
    return found
