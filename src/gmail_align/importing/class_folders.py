"""A folder or zip of images, as it lies on anyone's disk, as one side of a gap.

Subfolders mean something: the innermost one is the image's class where both sides have folders of
the same names; what stands above it on the generated side names the generator.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from gmail_align.artifacts import Artifact, Draft, begin, fingerprint, read_jsonl, write_jsonl
from gmail_align.data.images import (
    Quarantined,
    Sample,
    admit,
    finish_images,
    read_shard,
    shard_name,
    write_shard,
)
from gmail_align.errors import ArtifactError, DataError
from gmail_align.progress import progress

SOURCES: Final = "sources.jsonl"
SUFFIXES: Final = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
)
_SHARD: Final = 1000
_LONGEST: Final = 80

Kind = Literal["real", "generated"]
Read = Callable[[str], bytes]


def import_images(source: Path, out: Path, kind: Kind) -> Artifact:
    """Import every image file of a folder (with its subfolders) or of a zip; kind ``images``.

    ``sources.jsonl`` keeps the path of each image beside its id. Hidden files are passed over; an
    image that does not decode is left out, and more than 1% of them stop the import.

    Args:
        source: The folder or zip.
        out: Folder of the artifact.
        kind: Which side the images are.

    Raises:
        DataError: there is no image, or too many cannot be read.
        ArtifactError: ``out`` was made from something else.
    """
    with opened(source) as found:
        if not found.images:
            raise DataError(f"{source} holds no image file ({', '.join(sorted(SUFFIXES))})")
        identity = {"format": "files", "source": kind}
        files = fingerprint([list(entry) for entry in found.images])
        draft = begin(out, "images", identity, {"files": files})
        if draft.complete is not None:
            return draft.complete
        return _make(draft, [path for path, _ in found.images], found.read, kind)


def source_paths(images: Artifact) -> dict[str, str] | None:
    """Return image id -> path in the folder it came from; None for images of another origin."""
    path = images.path(SOURCES)
    if not path.exists():
        return None
    return {str(row["id"]): str(row["path"]) for row in read_jsonl(path)}


def pairs_by_name(real: Mapping[str, str], generated: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pair images whose paths are equal up to their endings.

    Raises:
        DataError: no two are, or a name stands for two images.
    """
    sides = [_by_stem(side) for side in (real, generated)]
    names = [name for name in sides[0] if name in sides[1]]
    if not names:
        raise DataError(
            "no generated image has the name of a real one: give both the same name to pair them, "
            "or leave out --paired"
        )
    return [(sides[0][name], sides[1][name]) for name in names]


def labels_of(
    real: Mapping[str, str], generated: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Read classes and generators off the subfolders, by image id.

    Returns:
        Classes of the real images, classes of the generated ones, generators of the generated
        ones; empty where the folders do not say.
    """
    above = [
        {name: PurePosixPath(path).parent.parts for name, path in side.items()}
        for side in (real, generated)
    ]
    inner = [{parts[-1] for parts in side.values() if parts} for side in above]
    shared = inner[0] & inner[1]
    by_class = len(shared) > 1 and all(parts for side in above for parts in side.values())
    cut = -1 if by_class else None
    generators = {name: "/".join(parts[:cut]) for name, parts in above[1].items()}
    first, second = (
        {name: parts[-1] for name, parts in side.items()} if by_class else {} for side in above
    )
    return first, second, generators if len(set(generators.values())) > 1 else {}


def class_prompt(name: str) -> str:
    """Return the caption that a class folder stands for: ``0_fire_truck`` is a fire truck."""
    words = re.sub(r"^\d+[_\-. ]+", "", name).replace("_", " ").replace("-", " ").strip()
    return f"a photo of a {words or name}."


def _make(draft: Draft, paths: Sequence[str], read: Read, kind: Kind) -> Artifact:
    ids = image_ids(paths)
    with progress(f"{kind} images", len(paths), "images") as bar:
        for index, start in enumerate(range(0, len(paths), _SHARD)):
            chunk = range(start, min(start + _SHARD, len(paths)))
            shard = draft.path(shard_name(index))
            if read_shard(shard) is None:
                found = [_sample(ids[row], paths[row], read, kind) for row in chunk]
                bad = [entry for entry in found if isinstance(entry, Quarantined)]
                write_shard(shard, [one for one in found if not isinstance(one, Quarantined)], bad)
            bar.advance(len(chunk))
    rows = [{"id": name, "path": path} for name, path in zip(ids, paths, strict=True)]
    write_jsonl(draft.path(SOURCES), rows)
    return finish_images(draft)


def _sample(name: str, path: str, read: Read, kind: Kind) -> Sample | Quarantined:
    try:
        record, data = admit(name, read(path))
        return replace(record, source=kind), data
    except (DataError, OSError, zipfile.BadZipFile) as error:
        return Quarantined(name, f"{path}: {error}")


def image_ids(paths: Sequence[str]) -> list[str]:
    """Return an id for each path: its letters and digits, kept apart by a number where alike."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        stem = str(PurePosixPath(path).with_suffix(""))
        name = (
            re.sub(r"[^A-Za-z0-9_-]+", "-", stem).lstrip("-_")[-_LONGEST:].lstrip("-_") or "image"
        )
        while name in seen:
            seen[name] += 1
            name = f"{name}-{seen[name]}"
        seen[name] = 1
        names.append(name)
    return names


@dataclass(frozen=True)
class Opened:
    """A folder or zip: (path, size) of every image in it by name, all files, how to read one."""

    images: Sequence[tuple[str, int]]
    names: Collection[str]
    read: Read


@contextmanager
def opened(source: Path) -> Iterator[Opened]:
    """Open a folder or zip of images.

    Raises:
        ArtifactError: it is neither.
    """
    if source.is_dir():
        files = (path for path in source.rglob("*") if path.is_file())
        found = {path.relative_to(source).as_posix(): path.stat().st_size for path in files}
        yield Opened(_images(found), found.keys(), lambda name: (source / name).read_bytes())
        return
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"{source} is no folder of images, zip of images or artifact: {error}"
        ) from error
    with archive:
        members = {info.filename: info.file_size for info in archive.infolist()}
        yield Opened(_images(members), members.keys(), archive.read)


def _images(found: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(
        (path, size)
        for path, size in found.items()
        if PurePosixPath(path).suffix.lower() in SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(path).parts)
    )


def _by_stem(paths: Mapping[str, str]) -> dict[str, str]:
    """Return path without ending -> image id."""
    found: dict[str, str] = {}
    for name, path in paths.items():
        stem = str(PurePosixPath(path).with_suffix(""))
        if found.setdefault(stem, name) != name:
            raise DataError(f"two images are named {stem}: names must be unique to pair them")
    return found
