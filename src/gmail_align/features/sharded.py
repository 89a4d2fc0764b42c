"""Extraction in several processes: shards of rows, joined into one feature store at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gmail_align.artifacts import Artifact, Draft, atomic_file, load
from gmail_align.data.images import ImageStore
from gmail_align.data.names import Names
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.engine import Engine, Job, Part, run_shards
from gmail_align.errors import ModelError
from gmail_align.features.pixels import decoder
from gmail_align.features.rows import RowFile
from gmail_align.features.run import (
    StoredDtype,
    begin_images,
    begin_texts,
    finish_rows,
    image_rows,
    read_texts,
    text_rows,
)
from gmail_align.features.store import feature_file
from gmail_align.progress import say
from gmail_align.runtime import resolve_device

ROWS = "rows"
_BATCHES = 16
"""Batches in a shard; what a killed worker makes again."""


@dataclass(frozen=True)
class Extraction:
    """What is extracted, and by what."""

    encoder: Path
    """Folder that every worker loads the encoder from."""
    route: Route
    """Which weights images go through; for captions, the route of the images that they describe."""
    texts: bool = False
    """Whether captions are extracted, not images."""
    batch_size: int = 64
    dtype: StoredDtype = "float32"
    device: str = "auto"

    def weights(self, encoder: GmailEncoder) -> str:
        """Return the fingerprint of what the features depend on in an encoder."""
        if self.texts:
            return encoder.text_fingerprint(self.route)
        return encoder.route_fingerprint(self.route)


def extract_on(
    engine: Engine, source: Artifact, how: Extraction, out: Path, part: Part | None = None
) -> Artifact | None:
    """Extract features of all images, or captions, on an engine.

    On CPUs the artifact equals the one of :func:`~gmail_align.features.run.extract_images` or
    :func:`~gmail_align.features.run.extract_texts`, byte for byte, when every worker computes with
    as many threads.

    Args:
        engine: Where; every machine of a cluster must see the folders under these paths.
        source: The images; or captions, or pairs for theirs.
        how: What is extracted.
        out: Folder of the artifact.
        part: Make the shards of this part alone. Parts may run at the same time; the one that
            finds all shards written finishes the artifact, as does a run without a part.

    Returns:
        The features, or None while shards of other parts are missing.

    Raises:
        DataError: an image cannot be decoded, or there is no caption.
        ModelError: a worker's encoder is another one.
        ArtifactError: ``out`` was made from something else.
    """
    encoder = GmailEncoder.from_pretrained(how.encoder)
    draft = _begin(source, encoder, how, out, part)
    if draft.complete is not None:
        return draft.complete
    texts = read_texts(source) if how.texts else None
    names = ImageStore(source).ids if texts is None else texts.ids
    unit = "captions" if how.texts else "images"
    target = feature_file(out, len(names), encoder.dim, how.dtype)
    size = how.batch_size * _BATCHES
    maker = _RowMaker(source.folder, how, how.weights(encoder), out, target, size)
    starts = range(0, target.count, size)
    job = Job(
        maker,
        maker.done,
        size=lambda start: len(maker.span(start)),
        label=f"features ({'text' if how.texts else how.route})",
        unit=unit,
        gpu=how.device == "cuda" or (how.device == "auto" and engine.gpus() > 0),
    )
    if not target.path.exists():
        run_shards([s for s in starts if part is None or part.owns(s // size)], job, engine)
    if part is not None:
        missing = [] if target.path.exists() else [s for s in starts if not maker.done(s)]
        if missing:
            say(f"{len(missing)} of {len(starts)} shards are still to be made, by other parts")
            return None
        if not draft.claim():
            return _begin(source, encoder, how, out, part).complete
    if not target.path.exists():
        _join(target, [maker.path(start) for start in starts])
    shutil.rmtree(out / ROWS, ignore_errors=True)
    cut = 0 if texts is None else encoder.tell_cut(texts.lines)
    return finish_rows(draft, names, unit, cut)


def _begin(
    source: Artifact, encoder: GmailEncoder, how: Extraction, out: Path, part: Part | None
) -> Draft:
    share = f"{part.number}-{part.of}" if part else ""
    if how.texts:
        return begin_texts(source, encoder, out, how.route, how.dtype, part=share)
    return begin_images(source, encoder, how.route, out, None, how.dtype, part=share)


def _join(target: RowFile, parts: Sequence[Path]) -> None:
    with atomic_file(target.path) as file:
        file.write(target.header)
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, file)


@dataclass
class _RowMaker:
    """Makes shards of rows; the encoder is loaded for the first and kept."""

    source: Path
    how: Extraction
    weights: str
    """Fingerprint of what the features depend on."""
    out: Path
    target: RowFile
    rows: int
    """Rows in a shard."""

    def span(self, start: int) -> range:
        """Return the rows of the shard that begins with row ``start``."""
        return range(start, min(start + self.rows, self.target.count))

    def path(self, start: int) -> Path:
        """Return the file of the shard that begins with row ``start``."""
        return self.out / ROWS / f"{start:010d}"

    def done(self, start: int) -> bool:
        """Tell whether a shard is written."""
        path, size = self.path(start), len(self.span(start)) * self.target.row_bytes
        return path.exists() and path.stat().st_size == size

    def __call__(self, start: int, advance: Callable[[int], None]) -> None:
        """Extract one shard and write it."""
        span, size = self.span(start), self.how.batch_size
        batches = [
            range(at, min(at + size, span.stop)) for at in range(span.start, span.stop, size)
        ]
        with self._embedder() as embed, atomic_file(self.path(start)) as file:
            for rows in batches:
                file.write(embed(rows).tobytes())
                advance(len(rows))

    @contextmanager
    def _embedder(self) -> Iterator[Callable[[range], npt.NDArray[Any]]]:
        """Open a function from a batch's rows to its features."""
        encoder, how, route = self._encoder, self.how, self.how.route
        if how.texts:
            lines, dtype = self._lines, how.dtype
            yield lambda rows: text_rows(encoder, lines[rows.start : rows.stop], route, dtype)
            return
        names = self._store.ids
        with decoder(self._store, encoder.preprocess) as decode:
            yield lambda rows: image_rows(
                encoder,
                decode(names[rows.start : rows.stop]).to(encoder.device),
                route,
                how.dtype,
            )

    @cached_property
    def _store(self) -> ImageStore:
        return ImageStore(load(self.source, "images"))

    @cached_property
    def _lines(self) -> Names:
        return read_texts(load(self.source)).lines

    @cached_property
    def _encoder(self) -> GmailEncoder:
        encoder = GmailEncoder.from_pretrained(self.how.encoder)
        if self.how.weights(encoder) != self.weights:
            raise ModelError(
                f"{self.how.encoder} on this machine is another encoder than where the run was "
                "begun: put the same one on every machine"
            )
        return encoder.to(resolve_device(self.how.device))
