"""Imports: a data set in its own format becomes a captions artifact and an images artifact."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gmail_align.artifacts import MANIFEST, Artifact, Draft, begin, fingerprint, sha256_file
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.coco import (
    CocoImage,
    coco_captions,
    coco_images,
    file_sizes,
    load_coco,
)
from gmail_align.data.images import (
    Quarantined,
    Sample,
    admit,
    check_quarantine,
    finish_images,
    read_shard,
    shard_name,
    write_shard,
)
from gmail_align.errors import DataError
from gmail_align.progress import progress


def import_coco(
    annotations: Path,
    images: Path,
    out: Path,
    *,
    split_name: str,
    limit_quarantine: float = 0.01,
    shard_size: int = 1000,
) -> tuple[Artifact, Artifact]:
    """Import COCO captions and their images (COCO 2014, 2017, or any json of that format).

    Images are ordered by id, captions by image id and then annotation id. An image that does not
    decode is left out and listed in ``quarantine.jsonl``; its captions stay.

    Args:
        annotations: COCO's ``captions_*.json``.
        images: Folder that the json's file names are relative to.
        out: Output folder; the artifacts are ``out/captions`` and ``out/images``.
        split_name: Name of the split (``"val2017"``), kept in both manifests.
        limit_quarantine: Largest share of images that may be left out.
        shard_size: Images a shard.

    Returns:
        The captions and the images.

    Raises:
        DataError: a file is missing, malformed or of another kind, an entry is unusable, or
            too many images are broken.
        ArtifactError: the output folders belong to other inputs.
    """
    data = load_coco(annotations)
    listed = coco_images(data, annotations)
    sizes = file_sizes(listed, images)
    complete = all((out / name / MANIFEST).exists() for name in ("captions", "images"))
    rows = [] if complete else coco_captions(data, annotations, listed)
    listing = [[image.file_name, size] for image, size in zip(listed, sizes, strict=True)]
    source = sha256_file(annotations)
    config = {"format": "coco", "split": split_name}
    captions = begin(out / "captions", "captions", config, {"annotations": source})
    store = begin(
        out / "images",
        "images",
        {**config, "shard_size": shard_size},
        {"annotations": source, "files": fingerprint(listing)},
    )
    return (
        captions.complete or _make_captions(captions, rows),
        store.complete or _make_images(store, listed, images, shard_size, limit_quarantine),
    )


def _make_captions(draft: Draft, rows: Sequence[Caption]) -> Artifact:
    count = write_captions(draft, rows)
    return draft.finish({"captions": count, "images": len({row.image_id for row in rows})})


def _make_images(
    draft: Draft, listed: Sequence[CocoImage], folder: Path, shard_size: int, limit: float
) -> Artifact:
    left_out: list[Quarantined] = []
    with progress("import", len(listed), "images") as bar:
        for index, start in enumerate(range(0, len(listed), shard_size)):
            chunk = listed[start : start + shard_size]
            path = draft.path(shard_name(index))
            done = read_shard(path)
            left_out.extend(done[1] if done else _make_shard(path, chunk, folder))
            bar.advance(len(chunk))
            check_quarantine(left_out, len(listed), limit)
    return finish_images(draft, limit_quarantine=limit)


def _make_shard(path: Path, images: Sequence[CocoImage], folder: Path) -> list[Quarantined]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        read = list(pool.map(lambda image: _read(image, folder), images))
    bad = [entry for entry in read if isinstance(entry, Quarantined)]
    write_shard(path, [entry for entry in read if not isinstance(entry, Quarantined)], bad)
    return bad


def _read(image: CocoImage, folder: Path) -> Sample | Quarantined:
    try:
        return admit(image.image_id, (folder / image.file_name).read_bytes())
    except OSError as error:
        return Quarantined(image.image_id, f"cannot be read: {error.strerror}")
    except DataError as error:
        return Quarantined(image.image_id, str(error))
