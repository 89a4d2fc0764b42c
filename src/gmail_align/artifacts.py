"""Folders that stages hand to each other: fingerprints, atomic files, manifests written last.

A stage calls :func:`begin` on its output folder. Either the artifact is already complete (then
there is nothing to do), or a :class:`Draft` comes back; the stage writes its files through the
draft, skips those that exist, and calls :meth:`Draft.finish`, which writes ``manifest.json``
last. A folder with a manifest is complete. A folder whose draft or manifest was made from other
inputs is refused, and the differing field is named.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gmail_align.errors import ArtifactError, DiskFullError
from gmail_align.runtime import versions

MANIFEST = "manifest.json"
DRAFT = "draft.json"
_LEASE = ".lease"
_PRIVATE = {MANIFEST, DRAFT}
_UNFINISHED = ".tmp"
_MANIFEST_FIELDS = {"kind", "config", "seed", "inputs", "counts", "files"}


def canonical_json(value: Any) -> str:
    """Serialise ``value`` so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """Return 16 hex digits of the sha256 of ``value`` as canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file that becomes ``path`` by fsync and rename when the block succeeds.

    Raises:
        DiskFullError: no space is left.
    """
    with full_disk_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        encoding = None if "b" in mode else "utf-8"
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent
        )
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def full_disk_explained(path: Path | str) -> Iterator[None]:
    """Turn "no space left" inside the block into a :class:`DiskFullError` that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"no space is left to write {path}: free some and run the same command again"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_jsonl(path: Path, rows: Iterator[Any] | list[Any]) -> None:
    """Write one JSON value a line to ``path``, atomically."""
    with atomic_file(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


@dataclass(frozen=True)
class Artifact:
    """A complete folder and what its manifest says."""

    folder: Path
    manifest: Mapping[str, Any]

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
        keys = ("kind", "config", "seed", "inputs", "files")
        return fingerprint({key: self.manifest[key] for key in keys})

    def path(self, name: str) -> Path:
        """Return the path of the file ``name`` inside the folder."""
        return self.folder / name


@dataclass
class Draft:
    """An artifact being made; ``complete`` is the artifact when there is nothing left to do."""

    folder: Path
    identity: Mapping[str, Any]
    complete: Artifact | None = None
    _lease: int | None = None
    _release: Callable[[], Any] | None = None
    _start: float = field(default_factory=time.monotonic)

    def path(self, name: str) -> Path:
        """Return the path of the file ``name`` inside the folder."""
        return self.folder / name

    def claim(self) -> bool:
        """Wait until no other part is at work here; False when one of them has finished it."""
        if self._lease is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._lease, fcntl.LOCK_EX)
        return not self.path(MANIFEST).exists()

    def finish(self, counts: Mapping[str, int], **notes: Any) -> Artifact:
        """Hash every file, write the manifest last and return the artifact.

        ``notes`` are kept in the manifest and are no part of the fingerprint.
        """
        for leftover in self.folder.rglob(f".*{_UNFINISHED}"):
            leftover.unlink()
        manifest = {
            **self.identity,
            "counts": dict(counts),
            "files": _hash_files(self.folder),
            "versions": versions(),
            "seconds": round(time.monotonic() - self._start, 3),
            **({"notes": notes} if notes else {}),
        }
        write_json(self.folder / MANIFEST, manifest)
        self.path(DRAFT).unlink(missing_ok=True)
        for lease in self.folder.glob(f"{_LEASE}*"):
            lease.unlink(missing_ok=True)
        if self._release is not None:
            self._release()
        return load(self.folder)


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
        ArtifactError: the folder holds something else, belongs to other inputs, or is being
            written.
    """
    identity = {
        "kind": kind,
        "config": json.loads(canonical_json(dict(config))),
        "seed": seed,
        "inputs": {
            name: value.fingerprint if isinstance(value, Artifact) else value
            for name, value in (inputs or {}).items()
        },
    }
    if (folder / MANIFEST).exists():
        artifact = load(folder)
        _refuse_difference(folder, artifact.manifest, identity)
        return Draft(folder, identity, complete=artifact)
    if (folder / DRAFT).exists():
        try:
            _refuse_difference(folder, _read_json(folder / DRAFT), identity)
        except ArtifactError:
            if _holds_something(folder):
                raise
            _close([_take_lease(folder, _LEASE)])  # a run that failed before it made anything
    elif folder.exists() and not _is_blank(folder):
        raise ArtifactError(f"{folder} is not empty and not an unfinished {kind}: choose another")
    write_json(folder / DRAFT, identity)
    leases = [_take_lease(folder, f"{_LEASE}-{part}")] if part else []
    try:
        leases.append(_take_lease(folder, _LEASE, shared=bool(part)))
    except ArtifactError:
        _close(leases)
        raise
    draft = Draft(folder, identity, _lease=leases[-1])
    draft._release = weakref.finalize(draft, _close, leases)
    return draft


def load(folder: Path, kind: str | None = None) -> Artifact:
    """Open a complete artifact.

    Raises:
        ArtifactError: the folder is missing, unfinished or of another kind.
    """
    path = folder / MANIFEST
    if not path.exists():
        state = "is unfinished" if (folder / DRAFT).exists() else "is no artifact"
        raise ArtifactError(
            f"{folder} {state}: it holds no {MANIFEST}; run the stage that makes it"
        )
    manifest = _read_json(path)
    if not _MANIFEST_FIELDS.issubset(manifest):
        raise ArtifactError(f"{path} is no manifest of gmail-align: {folder} is no artifact")
    artifact = Artifact(folder, manifest)
    if kind is not None and artifact.kind != kind:
        raise ArtifactError(f"{folder} holds {artifact.kind}, but {kind} are needed here")
    return artifact


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Name the first field in which two JSON values differ, with both values; None when equal.

    A key that is absent counts as null, so that a field added later with null as default is no
    difference.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    return None if old == new else f"{path} was {old!r} and is now {new!r}"


def _refuse_difference(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    difference = first_difference({key: old.get(key) for key in new}, new)
    if difference:
        raise ArtifactError(f"{folder} belongs to another run: {difference}; choose another folder")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} is damaged: {error}; delete the folder and run again"
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(
            f"{path} is damaged: it holds no object; delete the folder and run again"
        )
    return value


def _take_lease(folder: Path, name: str, shared: bool = False) -> int:
    """Lock a lease of the folder and return its descriptor; the lock ends with the process."""
    lease = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lease, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lease)
        raise ArtifactError(f"{folder} is being written by another process: wait for it") from error
    except OSError:  # a file system without locks: nothing guards against a second writer there
        pass
    return lease


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this block for ``folder``, then enter it.

    For what several processes need and one of them should make, such as a cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / f"{_LEASE}-turn", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _close(leases: list[int]) -> None:
    for lease in leases:
        os.close(lease)


def _is_blank(folder: Path) -> bool:
    """Whether nothing stands in the way: an empty folder, or a start that was killed at once."""
    return folder.is_dir() and all(
        path.name.startswith(_LEASE)
        or (path.name.startswith(".") and path.name.endswith(_UNFINISHED))
        for path in folder.iterdir()
    )


def _holds_something(folder: Path) -> bool:
    """Whether an unfinished folder holds a byte of what is being made."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return any(path.name != DRAFT and path.stat().st_size for path in files)


def _hash_files(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in files
        if path.name not in _PRIVATE and not path.name.startswith(_LEASE)
    }
