"""Extraction in several processes: shards of rows, joined into one feature store at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gmail_align.artifacts import Artifact, atomic_file, load
from gmail_align.data.images import ImageStore
from gmail_align.encoders.clip import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.engine import Engine, Job, run_shards
from gmail_align.errors import ModelError
from gmail_align.features.pixels import decoder
from gmail_align.features.rows import RowFile
from gmail_align.features.run import StoredDtype, begin_images, finish_rows, image_rows
from gmail_align.features.store import feature_file
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
    batch_size: int = 64
    dtype: StoredDtype = "float32"
    device: str = "auto"


def extract_images_on(engine: Engine, images: Artifact, how: Extraction, out: Path) -> Artifact:
    """Extract features of all images on an engine.

    On CPUs the artifact equals the one of :func:`~gmail_align.features.run.extract_images`, byte
    for byte, when every worker computes with as many threads.

    Args:
        engine: Where; every machine of a cluster must see the folders under these paths.
        images: The image store.
        how: What is extracted.
        out: Folder of the artifact.

    Raises:
        DataError: an image cannot be decoded.
        ModelError: a worker's encoder is another one.
        ArtifactError: ``out`` was made from something else.
    """
    encoder = GmailEncoder.from_pretrained(how.encoder)
    draft = begin_images(images, encoder, how.route, out, None, False, how.dtype)
    if draft.complete is not None:
        return draft.complete
    names = ImageStore(images).ids
    target = feature_file(out, len(names), encoder.dim, how.dtype)
    weights, rows = encoder.route_fingerprint(how.route), how.batch_size * _BATCHES
    maker = _RowMaker(images.folder, how, weights, out, target, rows)
    starts = range(0, target.count, maker.rows)
    job = Job(
        maker,
        maker.done,
        size=lambda start: len(maker.span(start)),
        label=f"features ({how.route})",
        unit="images",
        gpu=how.device == "cuda" or (how.device == "auto" and engine.gpus() > 0),
    )
    if not target.path.exists():
        run_shards(starts, job, engine)
        with atomic_file(target.path) as file:
            file.write(target.header)
            for start in starts:
                with maker.path(start).open("rb") as part:
                    shutil.copyfileobj(part, file)
    shutil.rmtree(out / ROWS, ignore_errors=True)
    return finish_rows(draft, names, "images")


@dataclass
class _RowMaker:
    """Makes shards of rows; the encoder is loaded for the first and kept."""

    images: Path
    how: Extraction
    weights: str
    """Fingerprint of what the route uses."""
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
        span, names = self.span(start), self._store.ids
        with (
            decoder(self._store, self._encoder.preprocess) as decode,
            atomic_file(self.path(start)) as file,
        ):
            for first in range(span.start, span.stop, self.how.batch_size):
                rows = range(first, min(first + self.how.batch_size, span.stop))
                pixels = decode([names[row] for row in rows]).to(self._encoder.device)
                made = image_rows(self._encoder, pixels, self.how.route, False, self.how.dtype)
                file.write(made.tobytes())
                advance(len(rows))

    @cached_property
    def _store(self) -> ImageStore:
        return ImageStore(load(self.images, "images"))

    @cached_property
    def _encoder(self) -> GmailEncoder:
        encoder = GmailEncoder.from_pretrained(self.how.encoder)
        if encoder.route_fingerprint(self.how.route) != self.weights:
            raise ModelError(
                f"{self.how.encoder} on this machine is another encoder than where the run was "
                "begun: put the same one on every machine"
            )
        return encoder.to(resolve_device(self.how.device))
