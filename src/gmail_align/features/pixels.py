"""Decoded pixels: images resized and cropped once, kept as bytes and mapped into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, fingerprint, read_jsonl, write_jsonl
from gmail_align.data.images import ImageStore
from gmail_align.data.mapped import distinct, marked, spans
from gmail_align.data.names import Names
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.errors import ArtifactError, DataError, damage_explained
from gmail_align.features.decoded_rows import DecodedRows
from gmail_align.features.rows import RowFile, fill_rows
from gmail_align.features.store import IDS

PIXELS = "pixels.u8"
_BATCH = 64

Decode = Callable[[Sequence[str]], Tensor]
"""Image ids -> UInt8[Tensor, "b 3 s s"]."""


@dataclass(frozen=True)
class Pixels:
    """Images before normalisation; ``Preprocess.normalise`` of a row is its ``Preprocess``."""

    ids: Sequence[str]
    """Image id of each row."""
    array: UInt8[Tensor, "n 3 s s"] | DecodedRows
    """Mapped from the file, or decoded when read: memory does not grow with n."""

    def rows(self, ids: Sequence[str]) -> Int64[Tensor, " k"]:
        """Return the row of each image.

        Raises:
            DataError: an image is not there.
        """
        rows = Names.of(self.ids).rows(ids)
        lost = (rows < 0).nonzero()[0]
        if len(lost):
            name = ids[int(lost[0])]
            raise DataError(f"image {name!r} has no pixels here: prepare the images again")
        return torch.from_numpy(rows)


def prepare_pixels(
    images: Artifact, preprocess: Preprocess, out: Path, *, ids: Sequence[str] | None = None
) -> Artifact:
    """Decode, resize and crop images once; returns an artifact of kind ``pixels``.

    Args:
        images: The image store.
        preprocess: Resizing and cropping.
        out: Folder of the artifact.
        ids: Images to prepare, in this order; all of them when None.

    Raises:
        DataError: an id is not in the store, comes twice or cannot be decoded.
    """
    config = {"preprocess": preprocess.fingerprint, "ids": ids if ids is None else fingerprint(ids)}
    draft = begin(out, "pixels", config, {"images": images})
    if draft.complete is not None:
        return draft.complete
    store = ImageStore(images)
    names = chosen_ids(store, ids)
    with decoder(store, preprocess) as decode:
        fill_rows(
            pixel_file(out, len(names), preprocess.size),
            _BATCH,
            lambda rows: decode([names[row] for row in rows]),
            lambda batch: cast("Tensor", batch).numpy(),
            label="pixels",
            unit="images",
        )
    write_jsonl(draft.path(IDS), iter(names))
    return draft.finish({"images": len(names)}, size=preprocess.size)


def read_pixels(artifact: Artifact) -> Pixels:
    """Open a ``pixels`` artifact without reading its images.

    Raises:
        ArtifactError: the artifact holds something else or is damaged.
    """
    if artifact.kind != "pixels":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}, but pixels are needed here")
    with damage_explained(artifact.folder, ArtifactError, "delete it and run again"):
        ids = Names(str(name) for name in read_jsonl(artifact.path(IDS)))
        size = int(artifact.manifest["notes"]["size"])
        file = pixel_file(artifact.folder, len(ids), size)
        if file.path.stat().st_size != file.size:
            raise ValueError("the file has another size")
        flat = torch.from_file(str(file.path), shared=False, size=file.size, dtype=torch.uint8)
    return Pixels(ids, flat.reshape(len(ids), 3, size, size))


def pixel_file(folder: Path, count: int, size: int) -> RowFile:
    """Return the file that holds ``count`` images of ``size`` by ``size`` pixels."""
    return RowFile(folder / PIXELS, count, 3 * size * size)


def chosen_ids(store: ImageStore, ids: Sequence[str] | None) -> Sequence[str]:
    """Return ``ids``, or all ids of the store.

    Raises:
        DataError: an id is not in the store, or comes twice, or there is none.
    """
    if ids is None and len(store):
        return store.ids
    names = Names.of(ids or ())
    rows = store.ids.rows(names)
    missing = marked(rows[span] < 0 for span in spans(len(rows)))
    if len(missing):
        raise DataError(
            f"{len(missing)} of {len(names)} images are not in {store.artifact.folder}, the first "
            f"of them {names[missing[0]]}: take ids from that store"
        )
    if len(distinct(rows)) < len(names) or not len(names):
        problem = "come twice" if len(names) else "are missing"
        raise DataError(f"some image ids {problem}: name every wanted image once")
    return names


@contextmanager
def decoder(store: ImageStore, preprocess: Preprocess) -> Iterator[Decode]:
    """Open a function that decodes, resizes and crops a batch of images in threads."""

    def one(name: str) -> Tensor:
        return store.reduce(name, lambda image: preprocess.pixels([image])[0])

    with ThreadPoolExecutor() as pool:
        yield lambda names: torch.stack(list(pool.map(one, names)))
