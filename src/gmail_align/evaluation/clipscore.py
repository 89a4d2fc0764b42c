"""Where CLIPScore's features come from: files, or an encoder and the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmail_align.artifacts import load
from gmail_align.data.images import ImageStore
from gmail_align.data.json_files import file_fingerprint
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.store import open_features
from gmail_align.metrics.bootstrap import Values
from gmail_align.metrics.clipscore import PROMPT, ClipFeatures
from gmail_align.runtime import resolve_device

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

    def identity(self) -> list[str]:
        """Return what tells these features from others."""
        paths = (self.images, self.captions, self.references)
        return [file_fingerprint(path) for path in paths if path is not None]


@dataclass(frozen=True)
class ClipEncoder:
    """An encoder, and the images that captions are of.

    Attributes:
        encoder: Folder or id.
        images: An ``images`` artifact.
        route: The route of images and texts.
        device: Where it runs.
    """

    encoder: str
    images: Path
    route: str = "frozen"
    device: str = "auto"

    def identity(self) -> list[str]:
        """Return what tells these features from others."""
        return [self.encoder, load(self.images, "images").fingerprint, self.route]


def clip_features(
    source: ClipFiles | ClipEncoder,
    systems: Mapping[str, Mapping[str, str]],
    human: Mapping[str, Sequence[str]],
    order: Sequence[str] | None = None,
) -> ClipFeatures:
    """Return features of images, captions and references, in the order of ``human``.

    Args:
        source: Where they come from. Files can only be those of one captioner.
        systems: Captioner -> image id -> caption, in the order of the predictions.
        human: Image id -> human captions.
        order: The image of every row of the references' file; by default those of ``human``.

    Raises:
        DataError: a file cannot be read, its rows are not as many as what they belong to, or an
            image is missing.
        ConfigError: files are given for several captioners.
    """
    owners = [name for name, texts in human.items() for _ in texts]
    if isinstance(source, ClipEncoder):
        return _of_encoder(source, systems, human, owners)
    if len(systems) != 1:
        raise ConfigError("CLIPScore of several captioners needs --encoder and --images")
    ((name, predicted),) = systems.items()
    place = {image: row for row, image in enumerate(predicted)}
    rows = [place[image] for image in human]
    images = _rows_of(source.images, len(predicted), "predictions")[rows]
    captions = _rows_of(source.captions, len(predicted), "predictions")[rows]
    if source.references is None:
        return ClipFeatures(images, {name: captions})
    every = owners if order is None else list(order)
    references = _rows_of(source.references, len(every), "references")
    numbers = {image: row for row, image in enumerate(human)}
    kept = [row for row, image in enumerate(every) if image in numbers]
    owner = np.array([numbers[every[row]] for row in kept], dtype=np.int64)
    return ClipFeatures(images, {name: captions}, references[kept], owner)


def _rows_of(path: Path, count: int, what: str) -> Values:
    features: Values = open_features(path).array.double().numpy()
    if len(features) != count:
        raise DataError(
            f"{path} has {len(features)} rows for {count} {what}: give one each, in order"
        )
    return features


def _of_encoder(
    source: ClipEncoder,
    systems: Mapping[str, Mapping[str, str]],
    human: Mapping[str, Sequence[str]],
    owners: Sequence[str],
) -> ClipFeatures:
    store = ImageStore(load(source.images, "images"))
    absent = [name for name in human if name not in store]
    if absent:
        raise DataError(f"{source.images} lacks {len(absent)} of the images: {absent[0]}, ...")
    model = GmailEncoder.from_pretrained(source.encoder).to(resolve_device(source.device))

    def texts(lines: Sequence[str]) -> Values:
        prompts = [PROMPT + line for line in lines]
        model.tell_cut(prompts)
        rows = model.encode_texts(prompts, source.route)
        return np.asarray(rows.numpy(), dtype=np.float64)

    def images() -> Iterator[Any]:
        ids = list(human)
        for start in range(0, len(ids), _BATCH):
            batch = [store.read(name) for name in ids[start : start + _BATCH]]
            yield model.encode_images(batch, route=source.route).double().numpy()

    place = {name: row for row, name in enumerate(human)}
    return ClipFeatures(
        np.concatenate(list(images())),
        {name: texts([own[image] for image in human]) for name, own in systems.items()},
        texts([text for some in human.values() for text in some]),
        np.array([place[name] for name in owners], dtype=np.int64),
    )
