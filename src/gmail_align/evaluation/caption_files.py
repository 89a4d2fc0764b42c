"""Captions on plain files: COCO's results and annotations in, one result out, and its items."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmail_align.artifacts import MANIFEST, load
from gmail_align.errors import DataError
from gmail_align.evaluation.items import Items
from gmail_align.evaluation.json_files import (
    is_lines,
    parse_json,
    parse_lines,
    parse_table,
    read_text,
)
from gmail_align.evaluation.result import answer
from gmail_align.metrics.captions import (
    METRICS,
    WordVectors,
    caption_metrics,
    compare_captioners,
    index_predictions,
    with_column,
)

if TYPE_CHECKING:
    from gmail_align.evaluation.clipscore import ClipEncoder, ClipFiles


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are scored.

    Attributes:
        metrics: Which of :data:`gmail_align.metrics.captions.METRICS`.
        protocol: Name kept with the numbers.
        partial: Score only the images that were predicted; else each image of the references
            needs a prediction.
        word_vectors: What WMD measures with.
        seed: Of the bootstrap.
    """

    metrics: Sequence[str] = METRICS
    protocol: str = "captions"
    partial: bool = False
    word_vectors: WordVectors | None = field(default=None, repr=False)
    seed: int = 0


def captions_of_files(
    predictions: Path,
    references: Path,
    options: CaptionOptions | None = None,
    clip: ClipFiles | ClipEncoder | None = None,
) -> tuple[dict[str, Any], Items]:
    """Score captions; return the result, ready for JSON, and its items.

    Where there is a WMD, ``word_vectors`` says what it measured with.

    Args:
        predictions: COCO results (a JSON list of ``{image_id, caption}``), or JSON lines of
            ``{image_id, text}``, or the folder of predictions that holds these.
        references: COCO annotations: JSON with ``annotations``, each ``{image_id, caption}``; or
            an artifact of captions.
        options: How.
        clip: Where CLIPScore's features come from, if it is wanted.

    Raises:
        UserError: a file cannot be read, an image comes twice, is unknown or missing, or a caption
            is empty.
        MissingExtraError: pycocoevalcap or Java is not installed.
    """
    start, options = time.monotonic(), options or CaptionOptions()
    rows, predicted = read_reference_rows(references), read_predictions(predictions)
    human = _human(rows, [predicted] if options.partial else [])
    scores = caption_metrics(
        predicted,
        human,
        metrics=options.metrics,
        word_vectors=options.word_vectors,
        seed=options.seed,
    )
    if clip is not None:
        from gmail_align.evaluation.clipscore import clip_columns

        owners = [name for name, _ in rows]
        for name, column in clip_columns(clip, predicted, owners, human).items():
            scores = with_column(scores, name, column, seed=options.seed)
    body = answer(
        scores.metrics, options.protocol, _n(human), start, unavailable=scores.unavailable
    )
    if "WMD" in scores.metrics and options.word_vectors is not None:
        given = options.word_vectors
        body["word_vectors"] = {"source": given.source, "unit_length": given.normalise}
    return body, Items(options.protocol, scores.image_ids, scores.columns)


def caption_items(
    predictions: Sequence[Path], references: Path, options: CaptionOptions | None = None
) -> tuple[list[Items], dict[str, str]]:
    """Score several files of predictions of the same images; return their items, and what failed.

    Raises:
        UserError: as :func:`captions_of_files`.
        MissingExtraError: pycocoevalcap or Java is not installed.
    """
    options = options or CaptionOptions()
    systems = {
        f"{chr(ord('A') + number)} ({path})": read_predictions(path)
        for number, path in enumerate(predictions)
    }
    rows = read_reference_rows(references)
    human = _human(rows, systems.values() if options.partial else [])
    if options.partial:  # what only one of them predicted; an unknown image stays, and is refused
        others = {name for name, _ in rows} - human.keys()
        systems = {
            name: {image: text for image, text in own.items() if image not in others}
            for name, own in systems.items()
        }
    table = compare_captioners(
        systems,
        human,
        metrics=options.metrics,
        word_vectors=options.word_vectors,
        seed=options.seed,
    )
    found = [Items(options.protocol, one.image_ids, one.columns) for one in table.values()]
    return found, dict(next(iter(table.values())).unavailable)


def _human(
    rows: Sequence[tuple[str, str]], wanted: Iterable[Mapping[str, str]]
) -> dict[str, list[str]]:
    """Group references by image; keep the images that each of ``wanted`` has."""
    grouped: dict[str, list[str]] = {}
    for name, text in rows:
        grouped.setdefault(name, []).append(text)
    limits = [set(one) for one in wanted]
    return {name: texts for name, texts in grouped.items() if all(name in one for one in limits)}


def _n(human: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {"images": len(human), "references": sum(map(len, human.values()))}


def read_predictions(path: Path) -> dict[str, str]:
    """Read image id -> caption from COCO results, JSON lines, or a folder of predictions.

    A table of image id to caption does as well.

    Raises:
        DataError: the file cannot be read, or an entry has no image id or caption.
        UserError: an image has two captions.
    """
    if path.is_dir():
        path = path / "predictions.jsonl"
    text = read_text(path)
    if is_lines(path, text) or not text.strip():
        return index_predictions(_entries(path, parse_lines(path, text), "text"))
    body = parse_table(path, text)
    if isinstance(body, dict) and body and all(isinstance(one, str) for one in body.values()):
        return dict(body)
    if isinstance(body, dict) and "image_id" in body:
        body = [body]
    if not isinstance(body, list):
        what = "these are annotations" if isinstance(body, dict) and "annotations" in body else ""
        raise DataError(
            f"{path} holds no predictions{what and f' ({what})'}: give COCO results, a list of "
            "image_id and caption, or JSON lines of image_id and text"
        )
    return index_predictions(_entries(path, body, "caption"))


def read_references(path: Path) -> dict[str, list[str]]:
    """Read image id -> captions; see :func:`read_reference_rows`."""
    return _human(read_reference_rows(path), [])


def read_reference_rows(path: Path) -> list[tuple[str, str]]:
    """Read (image id, caption) from COCO annotations or an artifact of captions, in its order.

    Raises:
        DataError: the file cannot be read or is of another kind, an entry has no image id or
            caption, or an annotation comes twice.
    """
    if path.is_dir() and (path / MANIFEST).exists():
        from gmail_align.data.captions import read_captions

        return [(row.image_id, row.text) for row in read_captions(load(path, "captions"))]
    body = parse_json(path, read_text(path))
    annotations = body.get("annotations") if isinstance(body, dict) else None
    if not isinstance(annotations, list) or not annotations:
        raise DataError(f"{path} holds no 'annotations': {_what_it_is(body)}")
    if isinstance(annotations[0], dict) and "caption" not in annotations[0]:
        raise DataError(
            f"{path} holds annotations without captions, as of objects or keypoints: give COCO's "
            "captions_*.json"
        )
    rows = list(_entries(path, annotations, "caption"))
    ids = [str(entry["id"]) for entry in annotations if "id" in entry]
    if len(set(ids)) != len(ids):
        raise DataError(f"{path} holds {len(ids) - len(set(ids))} annotation ids twice")
    return rows


def _what_it_is(body: Any) -> str:
    """Guess which other file of captions was given, and say what to do."""
    if isinstance(body, list):
        return "it looks like predictions, so give COCO caption annotations as --references"
    images = body.get("images") if isinstance(body, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    if isinstance(first, dict) and "sentences" in first:
        return (
            "it is one of Karpathy's files: import it (gmail-align import karpathy) and give the "
            "folder of captions"
        )
    return "give COCO caption annotations, or a folder of captions"


def _entries(path: Path, entries: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield image id and caption of each entry; the caption stands under ``key``, or the other."""
    other = "caption" if key == "text" else "text"
    for number, entry in enumerate(entries):
        own = entry if isinstance(entry, dict) else {}
        name, text = own.get("image_id"), own.get(key, own.get(other))
        if isinstance(name, float) and name.is_integer():  # as tables with gaps write them
            name = int(name)
        if isinstance(name, bool) or not isinstance(name, int | str) or not isinstance(text, str):
            raise DataError(f"entry {number} of {path} lacks an image_id or a {key}: add it")
        yield str(name), text
