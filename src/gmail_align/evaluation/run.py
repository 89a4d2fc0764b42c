"""The stages: score features or predictions under a named protocol.

Each writes ``result.json``: ``protocol``, ``metrics`` (name -> ``value``, ``low``, ``high`` and
``n``), ``n``, ``seed``, ``unavailable`` (metric -> why) and ``fingerprints``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, fingerprint, write_json
from gmail_align.errors import DataError
from gmail_align.evaluation.items import ITEMS, Items, write_items
from gmail_align.evaluation.protocol import headline, named, protocol_captions
from gmail_align.evaluation.result import RESULT, plain
from gmail_align.features.store import read_features
from gmail_align.metrics.compat import parse_compat
from gmail_align.metrics.retrieval import require_retrieval, retrieval_hits
from gmail_align.metrics.zeroshot import (
    accuracy_columns,
    accuracy_estimates,
    class_weights,
    zeroshot_hits,
)


def evaluate_retrieval(
    images: Artifact,
    texts: Artifact,
    captions: Sequence[tuple[str, str]],
    out: Path,
    *,
    protocol: str,
    subset: bool = False,
    compat: str | None = None,
    seed: int = 0,
) -> Artifact:
    """Score image-text retrieval both ways; returns an artifact of kind ``result``.

    Args:
        images: Image features.
        texts: Caption features of the same encoder.
        captions: (caption id, image id) of every caption; the protocol may take only the first few
            of an image. The gallery of images is theirs, in the order in which they first come.
        out: Folder of the result.
        protocol: Name kept with the numbers; that of a known protocol (``coco_val2017_5k``) asserts
            its counts.
        subset: The captions are declared a part of that protocol's.
        compat: Another evaluator (:class:`gmail_align.metrics.compat.Compat`) whose rule for ties
            and precision is followed; the result names it.
        seed: Of the bootstrap.

    Raises:
        DataError: a caption or an image has no feature, a caption comes twice, or the counts are
            not the protocol's.
        UserError: the features are not finite or of different width.
    """
    rule = None if compat is None else parse_compat(compat)
    captions = protocol_captions(captions, protocol)
    n = {"images": len({image for _, image in captions}), "texts": len(captions)}
    name = named(protocol, "retrieval", n, subset=subset)
    identity = {
        "protocol": name,
        "captions": fingerprint([list(row) for row in captions]),
        "compat": compat,
    }
    draft = begin(out, "result", identity, {"images": images, "texts": texts}, seed)
    if draft.complete is not None:
        return draft.complete
    ids, rows = _gathered(images, texts, captions)
    hits = retrieval_hits(*rows, compat=rule)
    write_items(draft.path(ITEMS), Items(name, ids, hits.columns()))
    body = {
        "protocol": name,
        **({"compat": compat} if compat else {}),
        "metrics": plain(hits.estimates(seed=seed)),
        "n": n,
        **_behind(seed, {"images": images, "texts": texts}),
    }
    write_json(draft.path(RESULT), body)
    return draft.finish(n)


def _gathered(
    images: Artifact, texts: Artifact, captions: Sequence[tuple[str, str]]
) -> tuple[tuple[str, ...], tuple[Tensor, Tensor, Tensor]]:
    """Return the ids of the images, and features of images and texts and whose each text is.

    Raises:
        DataError: a caption or an image has no feature, or a caption comes twice.
        UserError: the features are not finite or of different width.
    """
    if len({caption for caption, _ in captions}) != len(captions):
        raise DataError("a caption id comes more than once: give each caption once")
    place = {name: row for row, name in enumerate(dict.fromkeys(image for _, image in captions))}
    seen, read = read_features(images), read_features(texts)
    rows = (
        seen.array[seen.rows(place)],
        read.array[read.rows(caption for caption, _ in captions)],
        torch.tensor([place[image] for _, image in captions], dtype=torch.int64),
    )
    require_retrieval(*rows)
    return tuple(place), rows


def evaluate_zeroshot(
    images: Artifact,
    labels: Mapping[str, int],
    class_features: Float[Tensor, "c t d"],
    out: Path,
    *,
    protocol: str,
    subset: bool = False,
    seed: int = 0,
) -> Artifact:
    """Score zero-shot classification; returns an artifact of kind ``result``.

    Args:
        images: Image features.
        labels: Image id -> class, a row of ``class_features``.
        class_features: Text features of every prompt of every class; each class's prompts are
            averaged (see :func:`gmail_align.metrics.zeroshot.class_weights`).
        out: Folder of the result.
        protocol: Name kept with the numbers; that of a known protocol (``oxford_pets``) asserts its
            counts, and the result's ``headline`` names the metric that its field reports.
        subset: The images are declared a part of that protocol's.
        seed: Of the bootstrap.

    Raises:
        DataError: an image has no feature, there is no image, or the counts are not the protocol's.
        UserError: a label is out of range, or features are not finite or of different width.
    """
    if not labels:
        raise DataError("there are no labelled images to classify: give at least one")
    prompts = class_features.detach().float().cpu().contiguous()
    n = {"images": len(labels), "classes": len(prompts)}
    name = named(protocol, "zeroshot", n, subset=subset)
    digest = hashlib.sha256(prompts.numpy().tobytes()).hexdigest()[:16]
    identity = {
        "protocol": name,
        "labels": fingerprint(dict(labels)),
        "class_features": [*prompts.shape, digest],
    }
    draft = begin(out, "result", identity, {"images": images}, seed)
    if draft.complete is not None:
        return draft.complete
    seen = read_features(images)
    wanted = torch.tensor(list(labels.values()), dtype=torch.int64)
    hits = zeroshot_hits(seen.array[seen.rows(labels)], wanted, class_weights(prompts)).numpy()
    columns = accuracy_columns(hits, wanted.numpy())
    write_items(draft.path(ITEMS), Items(name, tuple(labels), columns))
    body = {
        "protocol": name,
        **headline(protocol),
        "metrics": plain(accuracy_estimates(hits, wanted.numpy(), seed=seed)),
        "n": n,
        **_behind(seed, {"images": images}, class_features=digest),
    }
    write_json(draft.path(RESULT), body)
    return draft.finish(n)


def _behind(seed: int, artifacts: Mapping[str, Artifact], **others: str) -> dict[str, Any]:
    """Say what numbers rest on: seed, artifacts, and the encoder and route of features."""
    routes = {
        name: {key: artifact.manifest["config"].get(key) for key in ("encoder", "weights", "route")}
        for name, artifact in artifacts.items()
    }
    prints = {name: artifact.fingerprint for name, artifact in artifacts.items()}
    return {"seed": seed, "unavailable": {}, "features": routes, "fingerprints": prints | others}
