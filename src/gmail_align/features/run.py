"""Extraction: a set of images or captions and an encoder in, a feature store out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gmail_align.artifacts import Artifact, Draft, begin, fingerprint, write_jsonl
from gmail_align.data.captions import Caption, iter_captions, iter_numbered
from gmail_align.data.images import ImageStore
from gmail_align.data.mapped import marked, spans
from gmail_align.data.names import Names
from gmail_align.data.pairs import Pair, iter_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, DataError
from gmail_align.features.pixels import Pixels, chosen_ids, decoder
from gmail_align.features.rows import RowFile, fill_rows
from gmail_align.features.store import IDS, feature_file

StoredDtype = Literal["float32", "float16"]
TEXTS_CUT = "texts_cut"
"""Note of a manifest: how many texts are longer than the text tower reads."""


def extract_images(
    images: Artifact,
    encoder: GmailEncoder,
    route: Route,
    out: Path,
    *,
    ids: Sequence[str] | None = None,
    batch_size: int = 64,
    dtype: StoredDtype = "float32",
    pixels: Pixels | None = None,
) -> Artifact:
    """Extract image features, not normalised; returns an artifact of kind ``features``.

    Its manifest's ``config`` names ``what`` (``image``), the ``encoder`` (fingerprint of the CLIP
    underneath), the ``weights`` (fingerprint of what the route uses), the ``route`` and the
    ``preprocess`` fingerprint. A plain CLIP and any encoder built on it have the same frozen
    features: an artifact made with the one is complete for the other.

    Args:
        images: The image store.
        encoder: The encoder, on the device where it shall run.
        route: Which weights the images go through.
        out: Folder of the artifact.
        ids: Images to extract, in this order; all of them when None.
        batch_size: Images in one forward pass.
        dtype: How features are stored.
        pixels: Decoded images, these among them; they are decoded here when None.

    Raises:
        DataError: an id is not in the store, comes twice or cannot be decoded.
        ArtifactError: ``out`` was made from something else.
    """
    draft = begin_images(images, encoder, route, out, ids, dtype)
    if draft.complete is not None:
        return draft.complete

    def embed(batch: Tensor) -> npt.NDArray[Any]:
        return image_rows(encoder, batch, route, dtype)

    with _reader(images, encoder, ids, pixels) as (names, read):
        file = feature_file(out, len(names), encoder.dim, dtype)
        return _embed_images(draft, file, names, batch_size, read, embed)


def extract_patches(
    images: Artifact,
    encoder: GmailEncoder,
    out: Path,
    *,
    ids: Sequence[str] | None = None,
    batch_size: int = 64,
    pixels: Pixels | None = None,
) -> Artifact:
    """Extract the mean of each image's frozen patch tokens before the last layer.

    Means, because a real and a generated image of one caption show things in different places.
    Arguments and errors are those of :func:`extract_images`.
    """
    config = {
        "what": "patch mean",
        "encoder": encoder.base_fingerprint,
        "preprocess": encoder.preprocess.fingerprint,
        "ids": None if ids is None else fingerprint(ids),
    }
    draft = begin(out, "features", config, {"images": images})
    if draft.complete is not None:
        return draft.complete

    @torch.no_grad()
    def embed(batch: Tensor) -> npt.NDArray[Any]:
        ready = encoder.preprocess.normalise(batch)
        return _rows(encoder.trunk_and_patches(ready, Route.FROZEN)[1], "float32")

    with _reader(images, encoder, ids, pixels) as (names, read):
        file = feature_file(out, len(names), encoder.width, "float32")
        return _embed_images(draft, file, names, batch_size, read, embed)


@contextmanager
def _reader(
    images: Artifact, encoder: GmailEncoder, ids: Sequence[str] | None, pixels: Pixels | None
) -> Iterator[tuple[Sequence[str], Callable[[range], Tensor]]]:
    """Open the ids of images and a function from rows to their pixels on the encoder's device."""
    if pixels is not None:
        names = pixels.ids if ids is None else ids
        places = None if names is pixels.ids else pixels.rows(names)

        def copy(rows: range) -> Tensor:
            part = slice(rows.start, rows.stop)
            return pixels.array[part if places is None else places[part]].to(encoder.device)

        yield names, copy
        return
    store = ImageStore(images)
    names = chosen_ids(store, ids)
    with decoder(store, encoder.preprocess) as decode:
        yield names, lambda rows: decode([names[row] for row in rows]).to(encoder.device)


def _embed_images(
    draft: Draft,
    file: RowFile,
    names: Sequence[str],
    batch_size: int,
    read: Callable[[range], Tensor],
    embed: Callable[[Tensor], npt.NDArray[Any]],
) -> Artifact:
    """Fill the file with what ``embed`` makes of each batch, and finish the artifact."""
    fill_rows(
        file,
        batch_size,
        read,
        lambda batch: embed(cast("Tensor", batch)),
        label=f"features ({draft.identity['config'].get('route', 'patches')})",
        unit="images",
    )
    return finish_rows(draft, names, "images")


def extract_texts(
    captions: Artifact,
    encoder: GmailEncoder,
    out: Path,
    *,
    route: Route,
    batch_size: int = 256,
    dtype: StoredDtype = "float32",
) -> Artifact:
    """Extract text features, not normalised, by caption id; an artifact of kind ``features``.

    Encoders built on one CLIP have the same ones unless their text tower is adapted.

    Args:
        captions: An artifact of kind ``captions`` or ``pairs``.
        encoder: The encoder, on the device where it shall run.
        out: Folder of the artifact.
        route: Route of the images that they are compared with; it matters where the text tower
            is adapted.
        batch_size: Texts in one forward pass.
        dtype: How features are stored.

    Raises:
        DataError: there is no caption, or one id has two texts.
        ModelError: the encoder has no usable tokenizer.
        ArtifactError: ``out`` was made from something else.
    """
    draft = begin_texts(captions, encoder, out, route, dtype)
    if draft.complete is not None:
        return draft.complete
    texts = read_texts(captions)
    names, lines = texts

    def embed(batch: object) -> npt.NDArray[Any]:
        return text_rows(encoder, cast("list[str]", batch), route, dtype)

    fill_rows(
        feature_file(out, len(names), encoder.dim, dtype),
        batch_size,
        lambda rows: lines[rows.start : rows.stop],
        embed,
        label="features (text)",
        unit="captions",
    )
    return finish_rows(draft, names, "captions", encoder.tell_cut(lines))


def begin_images(
    images: Artifact,
    encoder: GmailEncoder,
    route: Route,
    out: Path,
    ids: Sequence[str] | None,
    dtype: StoredDtype,
    part: str = "",
) -> Draft:
    """Open the artifact of :func:`extract_images` with these arguments, or a part's share of it."""
    weights = encoder.route_fingerprint(route)
    config = {
        "what": "image",
        "encoder": encoder.base_fingerprint,
        "weights": weights,
        "route": str(route),
        "preprocess": encoder.preprocess.fingerprint,
        "dtype": dtype,
        "ids": None if ids is None else fingerprint(ids),
    }
    return begin(out, "features", config, {"images": images}, part=part)


def begin_texts(
    captions: Artifact,
    encoder: GmailEncoder,
    out: Path,
    route: Route,
    dtype: StoredDtype,
    part: str = "",
) -> Draft:
    """Open the artifact of :func:`extract_texts` with these arguments, or a part's share of it."""
    config = {
        "what": "text",
        "encoder": encoder.base_fingerprint,
        "weights": encoder.text_fingerprint(route),
        "route": str(route if encoder.adapts_texts else Route.FROZEN),
        "preprocess": "",
        "dtype": dtype,
    }
    return begin(out, "features", config, {"captions": captions}, part=part)


@torch.no_grad()
def image_rows(
    encoder: GmailEncoder, pixels: Tensor, route: Route, dtype: StoredDtype
) -> npt.NDArray[Any]:
    """Return one batch's rows as they are stored.

    Raises:
        DataError: a feature is not finite, or too large for the dtype.
    """
    return _rows(encoder.embed_pixels(encoder.preprocess.normalise(pixels), route), dtype)


@torch.no_grad()
def text_rows(
    encoder: GmailEncoder, texts: Sequence[str], route: Route, dtype: StoredDtype
) -> npt.NDArray[Any]:
    """Return one batch's rows as they are stored.

    Raises:
        DataError: a feature is not finite, or too large for the dtype.
    """
    return _rows(encoder.embed_texts(list(texts), route), dtype)


def _rows(features: Tensor, dtype: StoredDtype) -> npt.NDArray[Any]:
    """Return finite features as an array of the stored dtype."""
    stored = features.to(torch.float16 if dtype == "float16" else torch.float32).cpu()
    if not torch.isfinite(stored).all():
        raise DataError(f"a feature is not finite in {dtype}: check the encoder or use float32")
    array: npt.NDArray[Any] = stored.numpy()
    return array


class Texts(NamedTuple):
    """Captions: each id once, with its text."""

    ids: Names
    lines: Names


def read_texts(source: Artifact) -> Texts:
    """Return the ids of captions, or of those of pairs, and their texts.

    A ``pair-index`` gives its distinct texts, whose ids are their numbers.

    Raises:
        ArtifactError: the artifact holds something else.
        DataError: there is no caption, or one id has two texts.
    """
    readers: dict[str, Callable[[Artifact], Iterator[Caption | Pair]]]
    readers = {"captions": iter_captions, "pairs": iter_pairs, "pair-index": iter_numbered}
    if source.kind not in readers:
        raise ArtifactError(f"{source.folder} holds {source.kind}, but captions are needed here")

    rows = ((row.caption_id, row.text) for row in readers[source.kind](source))
    texts = Texts(*Names.columns(rows, 2))
    if not len(texts.ids):
        raise DataError(f"{source.folder} does not have any caption: import captions first")
    firsts = texts.ids.rows(texts.ids)
    again = marked(firsts[s] != np.arange(s.start, s.stop) for s in spans(len(firsts)))
    for span in spans(len(again)):
        own = again[span]
        pairs = zip(texts.lines.take(own), texts.lines.take(firsts[own]), strict=True)
        for row, (text, first) in zip(own.tolist(), pairs, strict=True):
            if text != first:
                raise DataError(
                    f"caption id {texts.ids[row]} of {source.folder} has two texts: make ids unique"
                )
    return texts if not len(again) else Texts(*(_once(names, firsts) for names in texts))


def _once(names: Names, firsts: npt.NDArray[np.int64]) -> Names:
    """Return the names whose row is the first of their id."""
    rows = enumerate(zip(names, firsts, strict=True))
    return Names(name for row, (name, first) in rows if row == first)


def finish_rows(draft: Draft, names: Sequence[str], unit: str, texts_cut: int = 0) -> Artifact:
    """Write the ids and the manifest, which counts texts that were cut."""
    write_jsonl(draft.path(IDS), iter(names))
    notes = {TEXTS_CUT: texts_cut} if texts_cut else {}
    return draft.finish({unit: len(names), "rows": len(names)}, **notes)
