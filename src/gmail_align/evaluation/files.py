"""Retrieval and classification on plain files: ``.npy`` arrays in, one result out.

Every function returns what :func:`gmail_align.evaluation.result.answer` lays out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gmail_align.evaluation.items import ITEMS, Items, write_items
from gmail_align.evaluation.protocol import headline, named
from gmail_align.evaluation.result import answer
from gmail_align.features.arrays import load_features, load_integers
from gmail_align.metrics.compat import parse_compat
from gmail_align.metrics.retrieval import require_retrieval, retrieval_hits
from gmail_align.metrics.zeroshot import (
    accuracy_columns,
    accuracy_estimates,
    class_weights,
    zeroshot_hits,
)
from gmail_align.progress import say


def retrieval_of_files(
    image_features: Path,
    text_features: Path,
    text_image: Path,
    *,
    protocol: str = "retrieval",
    subset: bool = False,
    compat: str | None = None,
    seed: int = 0,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Score retrieval both ways.

    Args:
        image_features: Floats (n, d).
        text_features: Floats (m, d).
        text_image: Integers (m,): the row of each text's image.
        protocol: Name kept with the numbers; that of a known protocol asserts its counts.
        subset: The files are declared a part of that protocol's set.
        compat: Another evaluator (:class:`gmail_align.metrics.compat.Compat`) whose rule for ties
            and precision is followed; the result names it.
        seed: Of the bootstrap.
        keep: Folder to keep in what each image adds, so that results can be compared.

    Raises:
        UserError: a file cannot be read, the three do not fit, or their counts are not the
            protocol's.
    """
    start = time.monotonic()
    rule = None if compat is None else parse_compat(compat)
    images, texts = load_features(image_features), load_features(text_features)
    owner = load_integers(text_image)
    require_retrieval(images, texts, owner)
    n = {"images": len(images), "texts": len(texts)}
    name = named(protocol, "retrieval", n, subset=subset)
    silent = len(images) - len(owner.unique())
    if silent:
        say(f"{silent} of {len(images)} images have no text: they count as not found")
        n["images_without_text"] = silent
    hits = retrieval_hits(images, texts, owner, compat=rule)
    if keep is not None:
        rows = tuple(map(str, range(len(images))))
        write_items(keep / ITEMS, Items(name, rows, hits.columns()))
    found = answer(hits.estimates(seed=seed), name, n, start)
    return found | ({"compat": compat} if compat else {})


def zeroshot_of_files(
    image_features: Path,
    labels: Path,
    class_features: Path,
    *,
    protocol: str = "zeroshot",
    subset: bool = False,
    seed: int = 0,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Score zero-shot classification.

    Args:
        image_features: Floats (n, d).
        labels: Integers (n,): the row of each image's class.
        class_features: Floats (classes, d), or (classes, prompts, d) to be averaged.
        protocol: Name kept with the numbers; that of a known protocol asserts its counts, and the
            result's ``headline`` names the metric that its field reports.
        subset: The files are declared a part of that protocol's set.
        seed: Of the bootstrap.
        keep: Folder to keep in what each image adds, so that results can be compared.

    Raises:
        UserError: a file cannot be read, the three do not fit, or their counts are not the
            protocol's.
    """
    start = time.monotonic()
    images, wanted = load_features(image_features), load_integers(labels)
    classes = load_features(class_features, axes=(2, 3))
    weights = class_weights(classes if classes.ndim == 3 else classes[:, None])
    n = {"images": len(images), "classes": len(classes)}
    name = named(protocol, "zeroshot", n, subset=subset)
    hits = zeroshot_hits(images, wanted, weights).numpy()
    if keep is not None:
        rows = tuple(map(str, range(len(images))))
        write_items(keep / ITEMS, Items(name, rows, accuracy_columns(hits, wanted.numpy())))
    metrics = accuracy_estimates(hits, wanted.numpy(), seed=seed)
    return answer(metrics, name, n, start) | headline(protocol)
