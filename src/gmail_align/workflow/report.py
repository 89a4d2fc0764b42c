"""What the report of a run shows: curves, pictures and samples, read from the run's artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import read_jsonl
from gmail_align.data.captions import read_captions
from gmail_align.data.images import ImageStore
from gmail_align.data.pairs import Pair, read_pairs
from gmail_align.features.rows import read_rows
from gmail_align.report.data import (
    CaptionedImage,
    Embeddings,
    PairFigure,
    ReportData,
    Sample,
    StageSummary,
)
from gmail_align.report.gather import read_curve
from gmail_align.runtime import versions
from gmail_align.workflow.rows import JudgedEncoder, RecipeSteps
from gmail_align.workflow.steps.encoders import Aligned, Gap, ImageFeatures
from gmail_align.workflow.steps.learners import CaptionScores, Predictions
from gmail_align.workflow.steps.multimodal import LlavaCaptions
from gmail_align.workflow.work import Work

PAIRS_SHOWN, SAMPLES_SHOWN, POINTS_SHOWN, PANELS_SHOWN, CAPTIONS_LISTED = 8, 8, 500, 4, 200

_STAGES: Final = {
    "world": ("Draw the world", "Scenes with five captions each."),
    "captions": ("Choose captions", "Parts of the captions, such as those to generate from."),
    "images": ("Import and synthesise", "Real images and generated ones, in shards."),
    "leaks": ("Compare with the tests", "No training image is a test image."),
    "pairs": ("Pair", "Each generated image with a real image of its caption."),
    "features": ("Extract features", "Each image once for each set of weights."),
    "encoder": ("Align", "An adapter and heads, with the guard choosing the step."),
    "captioner": ("Train captioners", "One for each row and seed."),
    "conversations": ("Ask and answer", "Conversations about each row's images."),
    "vlm": ("Train LLaVA", "One for each row and seed."),
    "predictions": ("Caption", "The real test images, by each captioner."),
    "result": ("Measure", "Gap, retrieval, classification and captions."),
}
"""Kind of artifact -> name of the stage that makes it, and what it does."""


def gather_report(
    title: str, command: str, steps: RecipeSteps, work: Work, result: Mapping[str, Any]
) -> ReportData:
    """Read figures, curves and samples of the run's first seed."""
    aligned = {
        rows[0].judged.name: rows[0].judged
        for rows in steps.rows.values()
        if rows[0].judged is not None
    }
    return ReportData(
        title=title,
        command=command,
        result=result,
        stages=_stages(result),
        curves={
            name: read_curve(work.get(judged.encoder))
            for name, judged in aligned.items()
            if isinstance(judged.encoder, Aligned) and judged.encoder.settings.method == "gmail"
        },
        pairs=_pairs(work, steps.frozen, captions=PAIRS_SHOWN),
        embeddings=_embeddings(work, [*steps.frozen[:1], *aligned.values()][:PANELS_SHOWN]),
        embedded=_pairs(work, steps.frozen, most=POINTS_SHOWN),
        captioned=_captioned(work, steps.scores),
        samples=_samples(work, steps.scores),
        provenance=_provenance(result),
    )


def _stages(result: Mapping[str, Any]) -> list[StageSummary]:
    seconds = result["seconds"]
    return [
        StageSummary(name, seconds[kind], what)
        for kind, (name, what) in _STAGES.items()
        if kind in seconds
    ]


def _pairs(
    work: Work,
    frozen: Sequence[JudgedEncoder],
    *,
    most: int | None = None,
    captions: int | None = None,
) -> list[PairFigure]:
    """Return the first pairs that no training saw, or all of those of the first captions."""
    gap = next((one.gap for one in frozen if isinstance(one.gap, Gap)), None)
    if gap is None:
        return []
    real, generated = _images(work, gap.real), _images(work, gap.generated)
    rows = read_pairs(work.get(gap.pairs))[:most]
    first = set(list(dict.fromkeys(row.caption_id for row in rows))[:captions])
    return [
        PairFigure(
            row.text,
            real.read_bytes(row.real_image_id),
            generated.read_bytes(row.generated_image_id),
        )
        for row in rows
        if row.caption_id in first
    ]


def _images(work: Work, features: object) -> ImageStore:
    assert isinstance(features, ImageFeatures)
    return ImageStore(work.get(features.images))


def _embeddings(
    work: Work, judged: Sequence[JudgedEncoder]
) -> dict[str, tuple[Embeddings, Embeddings]]:
    """Return features of the first encoder's pairs, by each encoder that was judged on them."""
    panels: dict[str, tuple[Embeddings, Embeddings]] = {}
    pairs = ""
    for one in judged:
        if isinstance(one.gap, Gap) and pairs in ("", one.gap.pairs.key):
            pairs = one.gap.pairs.key
            name = f"After {one.name}" if isinstance(one.encoder, Aligned) else "Before alignment"
            panels[name] = _features(work, one.gap, read_pairs(work.get(one.gap.pairs)))
    return panels


def _features(work: Work, gap: Gap, pairs: Sequence[Pair]) -> tuple[Embeddings, Embeddings]:
    some = pairs[:POINTS_SHOWN]
    return (
        read_rows(work.get(gap.real), [row.real_image_id for row in some]),
        read_rows(work.get(gap.generated), [row.generated_image_id for row in some]),
    )


def _samples(work: Work, scores: Sequence[CaptionScores]) -> list[Sample]:
    """Return the first test images by id, with references and every row's caption."""
    if not scores:
        return []
    predicted = next(iter(scores[0].runs[0].values()))
    if isinstance(predicted, LlavaCaptions):
        store = ImageStore(work.get(predicted.images))
    else:
        assert isinstance(predicted, Predictions)
        store = _images(work, predicted.features)
    references, captions = _references(work, scores[0]), _row_captions(work, scores[0])
    return [
        Sample(
            store.read_bytes(image),
            references[image],
            {name: texts[image] for name, texts in captions.items()},
        )
        for image in list(references)[:SAMPLES_SHOWN]
    ]


def _captioned(work: Work, scores: Sequence[CaptionScores]) -> list[CaptionedImage]:
    """Return the first test images by id as text."""
    if not scores:
        return []
    references, captions = _references(work, scores[0]), _row_captions(work, scores[0])
    return [
        CaptionedImage(
            image, references[image][0], {name: texts[image] for name, texts in captions.items()}
        )
        for image in list(references)[:CAPTIONS_LISTED]
    ]


def _references(work: Work, scores: CaptionScores) -> dict[str, list[str]]:
    references: dict[str, list[str]] = {}
    for row in read_captions(work.get(scores.references)):
        references.setdefault(row.image_id, []).append(row.text)
    return references


def _row_captions(work: Work, scores: CaptionScores) -> dict[str, dict[str, str]]:
    """Return name of a row -> image id -> caption, of the first seed."""
    return {name: _captions(work.get(step).folder) for name, step in scores.runs[0].items()}


def _captions(folder: Path) -> dict[str, str]:
    return {row["image_id"]: row["text"] for row in read_jsonl(folder / "predictions.jsonl")}


def _provenance(result: Mapping[str, Any]) -> dict[str, str]:
    provenance = {f"version of {name}": value for name, value in versions().items()}
    provenance["protocol"] = str(result["protocol"])
    provenance["seeds"] = f"{result['seeds']}, from {result['seed']} on"
    provenance["intervals"] = (
        "95% percentile bootstrap over test images (and over seeds where there are several), "
        "1,000 resamples"
    )
    return provenance
