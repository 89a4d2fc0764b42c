"""Folders that stages hand to each other: fingerprints, atomic files, manifests written last.

A stage calls :func:`begin` on its output folder. Unless the artifact is complete, the stage writes
the files that a :class:`Draft` lacks, and :meth:`Draft.finish` writes ``manifest.json`` last.

A folder with a manifest is complete, and nothing is written into it any more. A folder that was
made from other inputs is refused, and the differing field is named. One process writes at a time:
it holds the folder's lease. The next run removes what a killed one left.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from gmail_align.config import load_json
from gmail_align.errors import (
    ArtifactError,
    damage_explained,
    full_disk_explained,
    unwritable_explained,
)
from gmail_align.identity import canonical_json as canonical_json
from gmail_align.identity import fingerprint as fingerprint
from gmail_align.identity import first_difference as first_difference
from gmail_align.leases import (
    LEASE,
    close,
    is_mark,
    keep_for,
    lock,
    open_temporary,
    remove_leftovers,
    remove_marks,
    share,
    sweep,
    take_leases,
)
from gmail_align.progress import LOG, open_log
from gmail_align.remote import copy_artifact, require_inside, url_of
from gmail_align.runtime import versions

MANIFEST = "manifest.json"
DRAFT = "draft.json"
_PRIVATE = {MANIFEST, DRAFT, LOG}
_IDENTITY = ("kind", "config", "seed", "inputs", "files")
_AGAIN = "delete the folder and run again"
_MANIFEST_FIELDS = {"kind": str, "seed": int} | dict.fromkeys(
    ("config", "inputs", "counts", "files"), dict
)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes ``path`` by fsync and rename when the block succeeds.

    Raises:
        DiskFullError: no space is left.
        ArtifactError: ``path`` lies in an artifact that is finished, or cannot be written.
    """
    if path.name != MANIFEST and (path.parent / MANIFEST).exists():
        raise ArtifactError(f"{path.parent} is finished: write {path.name} to another folder")
    with unwritable_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = open_temporary(path)
    try:
        with full_disk_explained(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_jsonl(path: Path, rows: Iterator[Any] | list[Any]) -> int:
    """Write one JSON value a line to ``path``, atomically, and count them."""
    count = 0
    with atomic_file(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON-lines file.

    Raises:
        ArtifactError: a line does not hold JSON that can be written again.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            with damage_explained(f"line {number} of {path}", ArtifactError, _AGAIN):
                value = json.loads(line)
                if b"\\u" in line:
                    canonical_json(value).encode()  # half a surrogate is not text
            yield value


@dataclass(frozen=True, repr=False)
class Artifact:
    """A complete folder and what its manifest says."""

    folder: Path
    manifest: Mapping[str, Any]
    url: str | None = None
    """Where its shards are, for an artifact that lies behind a URL."""

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self.counts.items())
        return f"Artifact({self.kind} in {self.folder}: {counts})"

    @property
    def kind(self) -> str:
        """What the folder holds: ``captions``, ``images``, ``features``, ..."""
        return str(self.manifest["kind"])

    @property
    def counts(self) -> Mapping[str, int]:
        """How many of what it holds."""
        return dict(self.manifest["counts"])

    @property
    def fingerprint(self) -> str:
        """Identity of the content: kind, configuration, inputs and the files' hashes."""
        return fingerprint({key: self.manifest[key] for key in _IDENTITY})

    def path(self, name: str) -> Path:
        """Return the path of the file ``name`` inside the folder."""
        return self.folder / name


@dataclass
class Draft:
    """An artifact being made; ``complete`` is the artifact when there is nothing left to do."""

    folder: Path
    identity: Mapping[str, Any]
    complete: Artifact | None = None
    _lease: int = -1
    _release: Callable[[], Any] | None = None

    def path(self, name: str) -> Path:
        """Return the path of the file ``name`` inside the folder."""
        return self.folder / name

    def files(self) -> list[str]:
        """Return the names of the files made so far, sorted; temporaries do not count."""
        return sorted(str(path.relative_to(self.folder)) for path in _files(self.folder))

    def claim(self) -> bool:
        """Wait until no other part is at work here; False when one of them has finished it."""
        lock(self._lease, self.path(LEASE), fcntl.LOCK_EX)
        if _is_complete(self.folder):
            return False
        sweep(self.folder)
        return True

    def finish(self, counts: Mapping[str, int], **notes: Any) -> Artifact:
        """Hash every file, write the manifest last and return the artifact.

        ``notes`` are kept in the manifest and do not change the fingerprint. ``seconds`` counts
        every attempt: a killed one up to its last write.
        """
        sweep(self.folder)
        draft = load_json(self.path(DRAFT), ArtifactError, _AGAIN)
        manifest = {
            **self.identity,
            "counts": dict(counts),
            "files": {name: sha256_file(self.path(name)) for name in self.files()},
            "versions": versions(),
            "seconds": round(draft["seconds"] + max(0.0, time.time() - draft["begun"]), 3),
            **({"notes": notes} if notes else {}),
        }
        write_json(self.path(MANIFEST), manifest)
        remove_marks(self.folder, DRAFT)
        if self._release is not None:
            self._release()
        return load(self.folder)


def beside(folder: Path, ending: str) -> Path:
    """Return the folder next to ``folder`` whose name goes on with ``ending``.

    Raises:
        ArtifactError: ``folder`` is the root, which nothing is next to.
    """
    place = folder if folder.name.strip(".") else Path(os.path.abspath(folder))
    if not place.name:
        raise ArtifactError(f"{folder} cannot be written: choose another folder")
    return place.with_name(place.name + ending)


def begin(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact | str] | None = None,
    seed: int = 0,
    part: str = "",
) -> Draft:
    """Open ``folder`` to be made into an artifact, or find it complete.

    Args:
        folder: Output folder; created when absent.
        kind: What the artifact holds.
        config: Everything of the configuration that its content depends on, as plain JSON values.
        inputs: The artifacts (or fingerprints) it is made from, by role.
        seed: Seed of the stage.
        part: Name of one of several processes that write files of their own into the folder at the
            same time; before :meth:`Draft.finish` one of them must :meth:`Draft.claim` it.

    Raises:
        ArtifactError: the folder holds something else, belongs to other inputs, cannot be written,
            or another process is writing it.
    """
    if url_of(folder):
        raise ArtifactError(f"{folder} is a URL: write to a folder here, and name it as --mirror")
    identity = {
        "kind": kind,
        "config": json.loads(canonical_json(dict(config))),
        "seed": seed,
        "inputs": {
            name: value.fingerprint if isinstance(value, Artifact) else value
            for name, value in (inputs or {}).items()
        },
    }
    with unwritable_explained(folder):
        draft = None if _is_complete(folder) else _open_draft(folder, identity, part)
    if draft is not None:
        return draft
    artifact = load(folder)
    refuse_difference(folder, artifact.manifest, identity)
    remove_leftovers(folder, DRAFT)
    return Draft(folder, identity, complete=artifact)


def is_unfinished(folder: Path) -> bool:
    """Tell whether a stage has begun to write ``folder`` and has not finished it."""
    return (folder / DRAFT).exists() and not _is_complete(folder)


def _is_complete(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def _open_draft(folder: Path, identity: Mapping[str, Any], part: str) -> Draft | None:
    """Take the lease, then write a draft or go on with the one that is there.

    Returns:
        The draft, or None when another process finished the artifact meanwhile.
    """
    _refuse_foreign(folder, identity["kind"])
    folder.mkdir(parents=True, exist_ok=True)
    leases, alone = take_leases(folder, part)
    try:
        if _is_complete(folder):
            close(leases)
            return None
        if alone:
            sweep(folder)
        _write_draft(folder, identity, alone=alone)
        if part and alone:
            share(leases[-1], folder)
    except BaseException:
        close(leases)
        raise
    draft = Draft(folder, identity, _lease=leases[-1])
    draft._release = keep_for(draft, leases, open_log(folder / LOG))
    return draft


def _write_draft(folder: Path, identity: Mapping[str, Any], *, alone: bool) -> None:
    """Note what is being made, and how long earlier attempts at it worked.

    Raises:
        ArtifactError: the folder belongs to another run, which made something or is at work.
    """
    path, spent = folder / DRAFT, 0.0
    if path.exists() and (not alone or any(file.stat().st_size for file in _files(folder))):
        draft = load_json(path, ArtifactError, _AGAIN)
        refuse_difference(folder, draft, identity)
        if not alone:
            return
        with damage_explained(path, ArtifactError, _AGAIN):
            last = max(file.stat().st_mtime for file in _files(folder))
            spent = draft.get("seconds", 0.0) + max(0.0, last - draft.get("begun", last))
    write_json(path, {**identity, "seconds": spent, "begun": time.time()})


def load(folder: Path, kind: str | None = None) -> Artifact:
    """Open a complete artifact. One behind a URL is copied here, but for the shards of images.

    Raises:
        ArtifactError: the folder is missing, unfinished, damaged or of another kind.
        RemoteError: a URL cannot be read.
    """
    url = url_of(folder)
    if url is not None:
        return replace(load(copy_artifact(url.rstrip("/"), MANIFEST), kind), url=url.rstrip("/"))
    path = folder / MANIFEST
    if not path.exists():
        state = "is unfinished" if is_unfinished(folder) else "is not an artifact"
        raise ArtifactError(f"{folder} {state}: it lacks a {MANIFEST}; run the stage that makes it")
    manifest = load_json(path, ArtifactError, _AGAIN)
    for key, kind_of_value in _MANIFEST_FIELDS.items():
        if not isinstance(manifest.get(key), kind_of_value):
            raise ArtifactError(
                f"{path} is not a manifest of gmail-align ({key} is missing or of another type): "
                f"{folder} is not an artifact"
            )
    if not all(isinstance(count, int) for count in manifest["counts"].values()):
        raise ArtifactError(f"{path} is damaged: a count is not a whole number; {_AGAIN}")
    for name in manifest["files"]:
        require_inside(name, folder)
    artifact = Artifact(folder, manifest)
    if kind is not None and artifact.kind != kind:
        raise ArtifactError(f"{folder} holds {artifact.kind}, but {kind} are needed here")
    return artifact


def refuse_difference(folder: Path | str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse a folder that was made from something else.

    Raises:
        ArtifactError: a field differs; it is named.
    """
    difference = first_difference({key: old.get(key) for key in new}, new)
    if difference:
        raise ArtifactError(f"{folder} belongs to another run: {difference}; choose another folder")


def _refuse_foreign(folder: Path, kind: str) -> None:
    """Refuse a folder that holds anything but the traces of a start that was killed at once."""
    if not folder.exists():
        return
    if folder.is_dir() and all(is_mark(path.name) for path in folder.iterdir()):
        return
    # Look for the draft after the list: a process that begins meanwhile writes its draft before any
    # file, and its manifest before it removes the draft.
    if (folder / DRAFT).exists() or _is_complete(folder):
        return
    raise ArtifactError(f"{folder} is not empty and not an unfinished {kind}: choose another")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of an artifact, without drafts, manifests, leases and temporaries."""
    for path in folder.rglob("*"):
        marked = any(map(is_mark, path.relative_to(folder).parts))
        if not marked and path.name not in _PRIVATE and path.is_file():
            yield path
