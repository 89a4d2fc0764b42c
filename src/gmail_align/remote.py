"""Files in object stores and on the web: s3://, gs://, hf://, https://, and memory:// for tests.

A place is a path everywhere, and a path makes one slash of two: ``s3:/bucket/a.zip`` is the URL
``s3://bucket/a.zip``. Files are read by ranges, never as a whole where a part is enough. A URL's
password and query never reach a message, a manifest or a log.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from gmail_align.errors import (
    ArtifactError,
    GmailAlignError,
    MissingExtraError,
    RemoteError,
    damage_explained,
    first_line,
    unwritable_explained,
)
from gmail_align.extras import require

_URL: Final = re.compile(r"(s3|gs|gcs|hf|https?|memory):/{1,2}(?=[^/])")
_SECRET: Final = re.compile(r"(?<=//)[^/@\s]*@|\?[^\s'\"]*")
_MODULES: Final = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
}


def url_of(place: Path | str) -> str | None:
    """Return the URL that a place stands for; None for a path on this machine."""
    text = str(place)
    hit = _URL.match(text)
    return None if hit is None else f"{hit[1]}://{text[hit.end() :]}"


def shown(place: Path | str) -> str:
    """Return a place for messages: a URL without its password and its query."""
    url = url_of(place)
    return str(place) if url is None else _SECRET.sub(_hidden, url)


def _hidden(secret: re.Match[str]) -> str:
    return "***@" if secret[0].endswith("@") else "?***"


def open_url(url: str) -> io.BufferedReader:
    """Open a file of a URL for reading; it reads the ranges that are asked for, some ahead.

    Raises:
        RemoteError: it is not there, may not be read, or the connection fails.
        MissingExtraError: what reads such URLs is not installed.
    """
    with explained(url):
        files, path = _system(url)
        return io.BufferedReader(_File(url, files.open(path, "rb")), 2**16)


class _File(io.RawIOBase):
    """A file of a file system whose failures are not taken for damage by those who parse it."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with explained(self._url):
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def read_range(url: str, start: int, size: int) -> bytes:
    """Return some bytes of a file; see :func:`open_url` for errors."""
    with explained(url):
        files, path = _system(url)
        return bytes(files.cat_file(path, start=start, end=start + size))


def state_of(url: str) -> list[Any]:
    """Return what changes with a file, or with any file below a folder; see :func:`open_url`."""
    with explained(url):
        files, path = _system(url)
        info = files.info(path)
        if info["type"] != "directory":
            return _state(info)
        rows = [[name, _state(one)] for name, one in sorted(files.find(path, detail=True).items())]
        return [hashlib.sha256(repr(rows).encode()).hexdigest()[:16]]


def is_folder(url: str) -> bool:
    """Whether a URL is that of a folder; see :func:`open_url` for errors."""
    with explained(url):
        files, path = _system(url)
        return bool(files.info(path)["type"] == "directory")


def exists(url: str) -> bool:
    """Whether a file is there; see :func:`open_url` for other errors."""
    with explained(url):
        files, path = _system(url)
        return bool(files.isfile(path))


def size_of(url: str) -> int:
    """Return the size of a file in bytes; see :func:`open_url` for errors."""
    with explained(url):
        files, path = _system(url)
        return int(files.info(path)["size"])


def names_below(url: str) -> dict[str, int]:
    """Return the name and the size of every file below a folder, sorted by name."""
    with explained(url):
        files, path = _system(url)
        rows = files.find(path, detail=True)
        root = PurePosixPath(path)
        return {
            str(PurePosixPath(name).relative_to(root)): int(info["size"] or 0)
            for name, info in sorted(rows.items())
        }


def download(home: str, name: str, folder: Path) -> Path:
    """Copy the file ``name`` of a folder behind a URL here; it appears as a whole.

    Raises:
        ArtifactError: the name leaves the folder.
        RemoteError: see :func:`open_url`.
    """
    require_inside(name, home)
    url, path = f"{home}/{name}", folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explained(url):
            files, place = _system(url)
            files.get_file(place, str(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def download_checked(home: str, files: Mapping[str, str], folder: Path) -> None:
    """Copy files of a folder behind a URL here, and check the sha256 of each.

    Raises:
        ArtifactError: a file is damaged, or its name leaves the folder.
        RemoteError: see :func:`open_url`.
    """
    for name, expected in files.items():
        with download(home, name, folder).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ArtifactError(f"{shown(home)}/{name} is damaged: make it again")


def require_inside(name: str, home: Path | str) -> None:
    """Check that a name that a manifest gives is one of a file inside its folder.

    Raises:
        ArtifactError: it leads out.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ArtifactError(f"{shown(home)} names {name}, a file outside: make the folder again")


def upload(path: Path, url: str) -> None:
    """Copy a file there; object stores show it when it is whole. See :func:`open_url`."""
    with explained(url):
        files, name = _system(url)
        files.put_file(str(path), name)


def copy_artifact(url: str, manifest: str) -> Path:
    """Copy an artifact into the cache of this machine, but for tars, and return its folder.

    Args:
        url: Its folder.
        manifest: Name of the file that lists the others with their sha256.

    Raises:
        ArtifactError: a file is damaged.
        RemoteError: see :func:`open_url`.
    """
    place = f"{url}/{manifest}"
    data = read_range(place, 0, size_of(place))
    home = os.environ.get("GMAIL_ALIGN_CACHE", "~/.cache/gmail-align")
    folder = Path(home).expanduser() / "remote" / hashlib.sha256(data).hexdigest()[:16]
    if (folder / manifest).exists():
        return folder
    with damage_explained(shown(place), ArtifactError, "make it again"):
        files = dict(json.loads(data)["files"])
    here = {name: expected for name, expected in files.items() if not name.endswith(".tar")}
    download_checked(url, here, folder)
    with unwritable_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{manifest}.{os.getpid()}"
        part.write_bytes(data)
        os.replace(part, folder / manifest)
    return folder


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn whatever a file system raises inside into one sentence without credentials.

    Raises:
        RemoteError: it is not there, may not be read, or the connection fails.
        MissingExtraError: what reads such URLs is not installed.
    """
    where = shown(url)
    try:
        yield
    except (GmailAlignError, MemoryError):
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"{where} needs a module that is not installed: run pip install 'gmail-align[cloud]'"
        ) from error
    except Exception as error:
        causes = [error, error.__cause__, error.__context__]  # fsspec takes all web errors for 404
        refused = {getattr(cause, "status", None) for cause in causes} & {401, 403}
        if refused or isinstance(error, PermissionError):
            raise RemoteError(f"{where} may not be used: check your credentials for it") from error
        unreached = next((one for one in causes if "Connect" in type(one).__name__), None)
        if isinstance(error, FileNotFoundError) and unreached is None:
            raise RemoteError(f"there is nothing at {where}: correct the URL") from error
        reason = _SECRET.sub(_hidden, first_line(unreached or error))
        raise RemoteError(
            f"{where} cannot be reached ({reason}): check the network, and run it again"
        ) from error


def _system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the name there."""
    scheme = url.partition("://")[0]
    if scheme in _MODULES:
        require(_MODULES[scheme], "cloud")
    fsspec: Any = require("fsspec", "cloud")
    files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return files, str(path)


def _state(info: dict[str, Any]) -> list[Any]:
    keys = ("size", "ETag", "etag", "md5Hash", "LastModified", "mtime", "last_modified", "created")
    return [str(info[key]) for key in keys if info.get(key) is not None]
