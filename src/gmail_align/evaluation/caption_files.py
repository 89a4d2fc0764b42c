"""Captions on plain files: COCO's results and annotations in, one result out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gmail_align.errors import DataError
from gmail_align.evaluation.json_files import parse_json, read_text
from gmail_align.evaluation.result import answer
from gmail_align.metrics.captions import METRICS, caption_metrics, index_predictions


def captions_of_files(
    predictions: Path,
    references: Path,
    *,
    partial: bool = False,
    metrics: Sequence[str] = METRICS,
    protocol: str = "captions",
    seed: int = 0,
) -> dict[str, Any]:
    """Score captions.

    Args:
        predictions: COCO results (a JSON list of ``{image_id, caption}``), or JSON lines of
            ``{image_id, text}``, or the folder of predictions that holds these.
        references: COCO annotations: JSON with ``annotations``, each ``{image_id, caption}``.
        partial: Score only the images that were predicted; else each image of ``references`` needs
            a prediction.
        metrics: Which of :data:`gmail_align.metrics.captions.METRICS`.
        protocol: Name kept with the numbers.
        seed: Of the bootstrap.

    Raises:
        UserError: a file cannot be read, an image comes twice, is unknown or missing, or a caption
            is empty.
        MissingExtraError: pycocoevalcap or Java is not installed.
    """
    start = time.monotonic()
    human, predicted = read_references(references), read_predictions(predictions)
    if partial:
        human = {name: texts for name, texts in human.items() if name in predicted}
    scores = caption_metrics(predicted, human, metrics=metrics, seed=seed)
    n = {"images": len(human), "references": sum(map(len, human.values()))}
    return answer(scores.metrics, protocol, n, start, unavailable=scores.unavailable)


def read_predictions(path: Path) -> dict[str, str]:
    """Read image id -> caption from COCO results, JSON lines, or a folder of predictions.

    Raises:
        DataError: the file cannot be read, or an entry has no image id or caption.
        UserError: an image has two captions.
    """
    if path.is_dir():
        path = path / "predictions.jsonl"
    text = read_text(path)
    if text.lstrip().startswith("["):
        return index_predictions(_entries(path, parse_json(path, text), "caption"))
    lines = [parse_json(path, line) for line in text.split("\n") if line.strip()]
    return index_predictions(_entries(path, lines, "text"))


def read_references(path: Path) -> dict[str, list[str]]:
    """Read image id -> captions from COCO annotations, in the order of the file.

    Raises:
        DataError: the file cannot be read, an entry has no image id or caption, or an annotation
            comes twice.
    """
    body = parse_json(path, read_text(path))
    annotations = body.get("annotations") if isinstance(body, dict) else None
    if not isinstance(annotations, list) or not annotations:
        raise DataError(f"{path} holds no 'annotations': give COCO caption annotations")
    found: dict[str, list[str]] = {}
    for name, caption in _entries(path, annotations, "caption"):
        found.setdefault(name, []).append(caption)
    ids = [entry["id"] for entry in annotations if "id" in entry]
    if len(set(map(str, ids))) != len(ids):
        raise DataError(f"{path} holds {len(ids) - len(set(map(str, ids)))} annotation ids twice")
    return found


def _entries(path: Path, entries: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield image id and caption of each entry; the caption stands under ``key``."""
    for number, entry in enumerate(entries):
        name, text = (
            (entry.get("image_id"), entry.get(key)) if isinstance(entry, dict) else (None, None)
        )
        if isinstance(name, bool) or not isinstance(name, int | str) or not isinstance(text, str):
            raise DataError(f"entry {number} of {path} lacks an image_id or a {key}: add it")
        yield str(name), text
