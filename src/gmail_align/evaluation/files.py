"""The same protocols on plain files: ``.npy`` arrays and COCO's caption JSON.

Every function returns ``metrics`` (name -> value), ``intervals`` (name -> [low, high]), ``n``,
``protocol``, ``unavailable`` and ``seconds``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmail_align.errors import DataError
from gmail_align.evaluation.result import split
from gmail_align.metrics.captions import METRICS, caption_metrics, index_predictions
from gmail_align.metrics.retrieval import require_retrieval, retrieval_metrics
from gmail_align.metrics.zeroshot import class_weights, zeroshot_metrics


def retrieval_of_files(
    image_features: Path,
    text_features: Path,
    text_image: Path,
    *,
    protocol: str = "retrieval",
    seed: int = 0,
) -> dict[str, Any]:
    """Score retrieval both ways.

    Args:
        image_features: Floats (n, d).
        text_features: Floats (m, d).
        text_image: Integers (m,): the row of each text's image.
        protocol: Name kept with the numbers.
        seed: Of the bootstrap.

    Raises:
        UserError: a file cannot be read, or the three do not fit.
    """
    start = time.monotonic()
    images, texts = load_features(image_features), load_features(text_features)
    owner = load_integers(text_image)
    require_retrieval(images, texts, owner)
    found = split(retrieval_metrics(images, texts, owner, seed=seed))
    return _answer(found, protocol, {"images": len(images), "texts": len(texts)}, start)


def zeroshot_of_files(
    image_features: Path,
    labels: Path,
    class_features: Path,
    *,
    protocol: str = "zeroshot",
    seed: int = 0,
) -> dict[str, Any]:
    """Score zero-shot classification.

    Args:
        image_features: Floats (n, d).
        labels: Integers (n,): the row of each image's class.
        class_features: Floats (classes, d), or (classes, prompts, d) to be averaged.
        protocol: Name kept with the numbers.
        seed: Of the bootstrap.

    Raises:
        UserError: a file cannot be read, or the three do not fit.
    """
    start = time.monotonic()
    images, wanted = load_features(image_features), load_integers(labels)
    classes = load_features(class_features, axes=(2, 3))
    weights = class_weights(classes if classes.ndim == 3 else classes[:, None])
    found = split(zeroshot_metrics(images, wanted, weights, seed=seed))
    return _answer(found, protocol, {"images": len(images), "classes": len(classes)}, start)


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
    return _answer(split(scores.metrics), protocol, n, start) | {"unavailable": scores.unavailable}


def load_features(path: Path, axes: tuple[int, ...] = (2,)) -> Tensor:
    """Read finite floats from a ``.npy`` file as float32; never unpickles.

    Raises:
        DataError: the file cannot be read, holds something else, or a row is not finite.
    """
    array = _load(path)
    if array.ndim not in axes or array.dtype.kind != "f":
        shapes = " or ".join("(rows, dim)" if n == 2 else "(classes, prompts, dim)" for n in axes)
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}: floats {shapes} are needed"
        )
    bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum())
    if bad:
        raise DataError(f"{bad} of {len(array)} rows of {path} hold NaN or infinity: extract again")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def load_integers(path: Path) -> Tensor:
    """Read a vector of integers from a ``.npy`` file as int64; never unpickles.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    array = _load(path)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}: a vector of integers is needed"
        )
    return torch.from_numpy(array.astype(np.int64))


def read_predictions(path: Path) -> dict[str, str]:
    """Read image id -> caption from COCO results, JSON lines, or a folder of predictions.

    Raises:
        DataError: the file cannot be read, or an entry has no image id or caption.
        UserError: an image has two captions.
    """
    if path.is_dir():
        path = path / "predictions.jsonl"
    text = _text(path)
    if text.lstrip().startswith("["):
        return index_predictions(_entries(path, _json(path, text), "caption"))
    lines = [_json(path, line) for line in text.splitlines() if line.strip()]
    return index_predictions(_entries(path, lines, "text"))


def read_references(path: Path) -> dict[str, list[str]]:
    """Read image id -> captions from COCO annotations, in the order of the file.

    Raises:
        DataError: the file cannot be read, an entry has no image id or caption, or an annotation
            comes twice.
    """
    body = _json(path, _text(path))
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


def _answer(
    found: dict[str, Any], protocol: str, n: dict[str, int], start: float
) -> dict[str, Any]:
    seconds = round(time.monotonic() - start, 3)
    return found | {"n": n, "protocol": protocol, "unavailable": {}, "seconds": seconds}


def _load(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays: save the one array with numpy.save")
    return array


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def _entries(path: Path, entries: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield image id and caption of each entry; the caption stands under ``key``."""
    for number, entry in enumerate(entries):
        name, text = (
            (entry.get("image_id"), entry.get(key)) if isinstance(entry, dict) else (None, None)
        )
        if isinstance(name, bool) or not isinstance(name, int | str) or not isinstance(text, str):
            raise DataError(f"entry {number} of {path} lacks an image_id or a {key}: add it")
        yield str(name), text
