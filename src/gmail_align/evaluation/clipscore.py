"""CLIPScore of captions: from features that are given, or from an encoder and the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gmail_align.artifacts import load
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.errors import DataError
from gmail_align.features.arrays import load_features
from gmail_align.metrics.bootstrap import Values
from gmail_align.metrics.clipscore import PROMPT, clip_score, ref_clip_score
from gmail_align.metrics.statistics import Column, mean_column

_BATCH = 64


@dataclass(frozen=True)
class ClipFiles:
    """Features of one CLIP model, as ``.npy`` files.

    Attributes:
        images: A row a prediction, in the order of the predictions.
        captions: The same, of the predicted captions behind "A photo depicts".
        references: A row a human caption, in the order of the references, behind the same words;
            None leaves RefCLIPScore out.
    """

    images: Path
    captions: Path
    references: Path | None = None


@dataclass(frozen=True)
class ClipEncoder:
    """An encoder, and the images that captions are of.

    Attributes:
        encoder: Folder or id.
        images: An ``images`` artifact.
        route: Which weights the images go through.
    """

    encoder: str
    images: Path
    route: str = "frozen"


def clip_columns(
    source: ClipFiles | ClipEncoder,
    predicted: Mapping[str, str],
    owners: Sequence[str],
    human: Mapping[str, Sequence[str]],
) -> dict[str, Column]:
    """Return ``CLIPScore``, and ``RefCLIPScore`` where it can be had, in the order of ``human``.

    Args:
        source: Where the features come from.
        predicted: Image id -> caption, in the order of the predictions.
        owners: The image of every human caption, in the order of the references.
        human: Image id -> human captions.

    Raises:
        DataError: a file cannot be read, or its rows are not as many as what they belong to.
        UserError: features are of different width, or zero.
    """
    ids = list(human)
    if isinstance(source, ClipFiles):
        images, captions, references = _of_files(source, list(predicted), owners)
        place = {name: row for row, name in enumerate(predicted)}
    else:
        images, captions, references = _of_encoder(source, predicted, human)
        place, owners = {name: row for row, name in enumerate(ids)}, _owners(human)
    rows = np.array([place[name] for name in ids], dtype=np.intp)
    scores = clip_score(images, captions)
    columns = {"CLIPScore": mean_column(scores[rows])}
    if references is not None:
        kept = [row for row, name in enumerate(owners) if name in place]
        owner: NDArray[np.int64] = np.array([place[owners[row]] for row in kept], dtype=np.int64)
        both = ref_clip_score(scores, captions, references[kept], owner)
        columns["RefCLIPScore"] = mean_column(both[rows])
    return columns


def _owners(human: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for name, texts in human.items() for _ in texts]


def _of_files(
    source: ClipFiles, predicted: Sequence[str], owners: Sequence[str]
) -> tuple[Values, Values, Values | None]:
    images, captions = (
        _rows(path, len(predicted), "predictions") for path in (source.images, source.captions)
    )
    if source.references is None:
        return images, captions, None
    return images, captions, _rows(source.references, len(owners), "references")


def _rows(path: Path, count: int, what: str) -> Values:
    found: Values = load_features(path).numpy().astype(np.float64)
    if len(found) != count:
        raise DataError(f"{path} has {len(found)} rows for {count} {what}: give one each, in order")
    return found


def _of_encoder(
    source: ClipEncoder, predicted: Mapping[str, str], human: Mapping[str, Sequence[str]]
) -> tuple[Values, Values, Values]:
    from gmail_align.data.images import ImageStore

    store = ImageStore(load(source.images, "images"))
    absent = [name for name in human if name not in store]
    if absent:
        raise DataError(f"{source.images} lacks {len(absent)} of the images: {absent[0]}, ...")
    model = GmailEncoder.from_pretrained(source.encoder)
    ids, found = list(human), []
    for start in range(0, len(ids), _BATCH):
        batch = [store.read(name) for name in ids[start : start + _BATCH]]
        found.append(model.encode_images(batch, route=source.route).numpy().astype(np.float64))
    written = [PROMPT + text for some in human.values() for text in some]
    captions = model.encode_texts([PROMPT + predicted[name] for name in ids], source.route)
    references = model.encode_texts(written, source.route)
    return np.concatenate(found), captions.double().numpy(), references.double().numpy()
