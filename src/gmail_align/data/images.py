"""The image store: tar shards in WebDataset's layout and an index for random access.

A shard ``shards/00007.tar`` holds ``{id}.jpg`` (or ``.png``, ``.webp``: the bytes as they came) and
``{id}.json`` of each sample. Its sidecar ``shards/00007.jsonl`` holds one line a record, one line
``{"id", "reason"}`` a sample that was left out, and one line ``{"id", "change"}`` a sample whose
pixels were changed. It is written after the tar, so a shard with a sidecar is done.
:func:`finish_images` merges the sidecars into ``index.parquet`` and ``quarantine.jsonl``.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from PIL import Image

from gmail_align.artifacts import (
    Artifact,
    Draft,
    atomic_file,
    canonical_json,
    read_jsonl,
    write_jsonl,
)
from gmail_align.data.counted import require_count
from gmail_align.data.decode import decode_rgb, extension
from gmail_align.data.ids import safe_id
from gmail_align.data.image_index import INDEX as INDEX
from gmail_align.data.image_index import ImageIndex, write_index
from gmail_align.data.names import Names
from gmail_align.data.unique import UniqueIds
from gmail_align.errors import ArtifactError, DataError, damage_explained
from gmail_align.remote import read_range

QUARANTINE: Final = "quarantine.jsonl"

_BLOCK: Final = tarfile.BLOCKSIZE
_LARGE: Final = 2**25  # pixels
_ONE_LARGE: Final = threading.Lock()
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One stored image: where it lies, what it is and what made it.

    ``shard``, ``offset``, ``size`` (bytes) and ``sha256`` (of the encoded bytes) are filled in by
    :func:`write_shard`; ``width`` and ``height`` are pixels. Real images have no generator,
    revision (commit on the hub, or fingerprint of the weights), seed, prompt, fingerprint of the
    weights, scheduler, denoising steps, guidance, verdict of a safety checker and number of the
    prompt's tokens that the generator did not read (None where it read them all). ``adapter``
    is the fingerprint of a generator's LoRA, ``clip_scores`` are those of all candidates of which
    this image is the best. ``caption`` is what the image was assigned to, where it was generated
    from another prompt.
    """

    id: str
    width: int
    height: int
    source: Literal["real", "generated"] = "real"
    generator: str = ""
    revision: str = ""
    seed: int | None = None
    prompt: str = ""
    weights: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    unsafe: bool | None = None
    tokens_cut: int | None = None
    adapter: str | None = None
    clip_scores: list[float] | None = None
    caption: str | None = None
    shard: int = -1
    offset: int = -1
    size: int = -1
    sha256: str = ""

    @property
    def text(self) -> str:
        """The caption that the image stands for; empty for a real image."""
        return self.caption or self.prompt


@dataclass(frozen=True)
class Quarantined:
    """A sample that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Changed:
    """A sample whose pixels are not those of its file, and what was changed."""

    id: str
    change: str


Sample = tuple[ImageRecord, bytes]


def shard_name(index: int) -> str:
    """Return the path of a shard inside its artifact."""
    return f"shards/{index:05d}.tar"


def shard_files(index: int) -> tuple[str, str]:
    """Return the files of a shard, the one that ends it last."""
    name = shard_name(index)
    return name, name.replace(".tar", ".jsonl")


def write_shard(
    path: Path,
    samples: Iterable[Sample],
    quarantined: Sequence[Quarantined] = (),
    changed: Sequence[Changed] = (),
) -> list[ImageRecord]:
    """Write one tar shard and its sidecar, each atomically; the same samples give the same bytes.

    Args:
        path: ``.../shards/00007.tar``; the number in its name becomes the records' ``shard``.
        samples: Records and encoded bytes, written in this order.
        quarantined: Samples of this shard that were left out.
        changed: What was changed in samples of this shard.

    Returns:
        The records with shard, offset, size and hash filled in.

    Raises:
        DataError: an id is unsafe or comes twice, or the bytes are not JPEG, PNG or WebP.
    """
    records: list[ImageRecord] = []
    seen: set[str] = set()
    with (
        atomic_file(path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for record, data in samples:
            if safe_id(record.id, "an image") in seen:
                raise DataError(
                    f"image id {record.id} comes twice in {path.name}: ids must be unique"
                )
            seen.add(record.id)
            records.append(_add_sample(tar, replace(record, shard=int(path.stem)), data))
    rows = [*map(asdict, records), *map(asdict, quarantined), *map(asdict, changed)]
    write_jsonl(path.with_suffix(".jsonl"), rows)
    return records


def read_shard(path: Path) -> tuple[list[ImageRecord], list[Quarantined]] | None:
    """Return what a finished shard holds and what it left out; None when it is not done."""
    sidecar = path.with_suffix(".jsonl")
    if not sidecar.exists() or not path.exists():
        return None
    try:
        rows = list(read_jsonl(sidecar))
        records = [ImageRecord(**row) for row in rows if not {"reason", "change"} & row.keys()]
        left_out = [Quarantined(**row) for row in rows if "reason" in row]
        end = max((record.offset + record.size for record in records), default=0)
    except (ArtifactError, TypeError):
        return None
    return (records, left_out) if path.stat().st_size > end else None


def count_changes(paths: Iterable[Path]) -> dict[str, int]:
    """Return change -> number of images of finished shards that were changed so."""
    rows = (row for path in paths for row in read_jsonl(path.with_suffix(".jsonl")))
    counts = Counter(str(row["change"]) for row in rows if "change" in row)
    return dict(sorted(counts.items()))


def check_quarantine(
    left_out: Sequence[Quarantined], total: int, limit: float, what: str = "images"
) -> None:
    """Stop when more than the share ``limit`` of ``total`` samples cannot be used.

    Raises:
        DataError: too many; the first is named with its reason.
    """
    if len(left_out) > limit * total:
        first = left_out[0]
        raise DataError(
            f"{len(left_out)} of {total} {what} cannot be used, more than {limit:.2%} (the first "
            f"is {first.id}: {first.reason}): mend them, or raise limit_quarantine"
        )


def finish_images(draft: Draft, *, limit_quarantine: float = 0.01, **notes: Any) -> Artifact:
    """Index the images (:func:`index_images`) and write the manifest.

    Args:
        draft: The artifact; all its shards are written.
        limit_quarantine: Largest share of samples that may be left out.
        **notes: Kept in the manifest, outside the fingerprint.

    Raises:
        DataError: no image is left, an id comes twice, or too many were left out.
    """
    return draft.finish(index_images(draft, limit_quarantine), **notes)


def index_images(draft: Draft, limit_quarantine: float) -> dict[str, int]:
    """Merge the sidecars into ``index.parquet`` and ``quarantine.jsonl``; return their counts."""
    left_out: list[Quarantined] = []
    paths = sorted(draft.path("shards").glob("*.tar"))
    with atomic_file(draft.path(INDEX)) as file:
        count = write_index(file, map(asdict, _merge(paths, left_out)))
    if not count and not left_out:
        raise DataError(f"{draft.folder} would not hold an image: the source lists none")
    check_quarantine(left_out, count + len(left_out), limit_quarantine)
    if not count:
        raise DataError(
            f"{draft.folder} would not hold an image: all of them were left out (the first is "
            f"{left_out[0].id}: {left_out[0].reason})"
        )
    write_jsonl(draft.path(QUARANTINE), [asdict(entry) for entry in left_out])
    return {"images": count, "quarantined": len(left_out), "shards": len(paths)}


class ImageStore:
    """Random access to the images of an ``images`` artifact; safe to share between threads.

    Memory does not grow with the images.
    """

    def __init__(
        self, artifact: Artifact, large: AbstractContextManager[Any] | None = None
    ) -> None:
        """Open the index.

        Args:
            artifact: The images.
            large: What large images wait for; None is a lock of this process.

        Raises:
            ArtifactError: the artifact holds something else, or its index is damaged.
        """
        if artifact.kind != "images":
            raise ArtifactError(
                f"{artifact.folder} holds {artifact.kind}, but images are needed here"
            )
        self.artifact, self._large = artifact, large or _ONE_LARGE
        advice = f"delete {artifact.folder} and make it again"
        with damage_explained(artifact.path(INDEX), ArtifactError, advice):
            self._index = ImageIndex(artifact.path(INDEX))
        require_count(artifact, len(self._index.ids))

    @property
    def ids(self) -> Names:
        """The ids of all images, in the order in which they were written."""
        return self._index.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.ids

    def record(self, image_id: str) -> ImageRecord:
        """Return what the index says about an image.

        Raises:
            DataError: no such image.
        """
        return ImageRecord(**self._index.record(self._row(image_id)))

    @property
    def texts(self) -> Names:
        """The caption that each image of ``ids`` stands for, as its record says."""
        return self._index.texts

    def read_bytes(self, image_id: str) -> bytes:
        """Return an image's encoded bytes, checked against the recorded hash.

        Raises:
            DataError: no such image.
            ArtifactError: the shard is missing or its bytes have changed.
        """
        row = self._row(image_id)
        shard, offset, size = self._index.places[row].tolist()
        path, url = self.artifact.path(shard_name(shard)), self.artifact.url
        with damage_explained(path, ArtifactError, f"make {self.artifact.folder} again"):
            if url is not None and not path.exists():
                data = read_range(f"{url}/{shard_name(shard)}", offset, size)
            else:
                with open(path, "rb", buffering=0) as file:
                    file.seek(offset)
                    data = file.read(min(size, os.fstat(file.fileno()).st_size))
        if hashlib.sha256(data).digest() != self._index.digests[row].tobytes():
            raise ArtifactError(
                f"image {image_id} in {path} is damaged: make {self.artifact.folder} again"
            )
        return data

    def read(self, image_id: str) -> Image.Image:
        """Return an image decoded to RGB.

        Raises:
            DataError: no such image, or it cannot be decoded.
            ArtifactError: the shard is missing or its bytes have changed.
        """
        data = self.read_bytes(image_id)
        try:
            return decode_rgb(data)
        except DataError as error:
            raise DataError(f"image {image_id} in {self.artifact.folder}: {error}") from error

    def reduce(self, image_id: str, make: Callable[[Image.Image], T]) -> T:
        """Decode an image and return what ``make`` makes of it; for threads.

        Large images wait for each other, so that the pixels of one of them are held at a time.

        Raises:
            DataError: no such image, or it cannot be decoded.
            ArtifactError: the shard is missing or its bytes have changed.
        """
        width, height = self._index.sides[self._row(image_id)].tolist()
        with self._large if width * height > _LARGE else nullcontext():
            return make(self.read(image_id))

    def _row(self, image_id: str) -> int:
        row = self.ids.row(image_id)
        if row < 0:
            raise DataError(f"{self.artifact.folder} does not hold the image {image_id!r}")
        return row


def _add_sample(tar: tarfile.TarFile, record: ImageRecord, data: bytes) -> ImageRecord:
    suffix = extension(data)
    if suffix is None:
        raise DataError(
            f"image {record.id} is neither JPEG, PNG nor WebP: encode it before it is stored"
        )
    offset = _add_member(tar, f"{record.id}.{suffix}", data)
    digest = hashlib.sha256(data).hexdigest()
    values = {name: getattr(record, name) for name in _MEMBER_FIELDS}
    given = {name: v for name, v in values.items() if v is not None or name not in _OPTIONAL}
    _add_member(tar, f"{record.id}.json", canonical_json(given).encode())
    return replace(record, offset=offset, size=len(data), sha256=digest)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append one member and return the offset in bytes at which its data begins."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    offset = int(tar.offset) + _BLOCK
    tar.addfile(info, io.BytesIO(data))
    return offset


_OPTIONAL: Final = {
    *("weights", "scheduler", "steps", "guidance_scale"),
    *("unsafe", "tokens_cut", "adapter", "clip_scores", "caption"),
}
_MEMBER_FIELDS: Final = [
    field.name
    for field in fields(ImageRecord)
    if field.name not in ("shard", "offset", "size", "sha256")
]


def _merge(paths: Sequence[Path], left_out: list[Quarantined]) -> Iterator[ImageRecord]:
    """Yield the records of all shards; what they left out is added to ``left_out``."""
    seen = UniqueIds()
    for path in paths:
        shard = read_shard(path)
        if shard is None:
            raise ArtifactError(f"{path} is not finished: run the same command again")
        left_out.extend(shard[1])
        for record in shard[0]:
            if not seen.add(record.id):
                raise DataError(f"image id {record.id} comes twice: ids must be unique")
            yield record
