"""Files inside a folder, a zip or a tar, listed and read in place: nothing is unpacked to disk."""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, cast, runtime_checkable

from gmail_align.data.unique import temporary_database
from gmail_align.errors import DataError

MAX_BYTES: Final = 256 * 2**20
"""Largest file that is read; what is larger is no image that could be used."""

_HIDDEN: Final = ("__MACOSX", ".")


@runtime_checkable
class Members(Protocol):
    """What a folder, a zip and a tar have in common; names use ``/`` and are relative."""

    @property
    def serial(self) -> bool:
        """Whether reading is fast in the order of :meth:`listing` only, by one thread."""

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every file as (name, fault); a fault says why the file cannot be used."""

    def find(self, name: str) -> str | None:
        """Return the name under which a file is there; in an archive, in whatever folder."""

    def stamp(self, name: str) -> list[int] | None:
        """Return numbers that change when a file does (its size, ...); None when it is missing."""

    def place(self, name: str) -> int:
        """Return where a file lies in an archive, for reading in order; 0 in a folder."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            DataError: the reason why it cannot be read.
        """


def open_members(path: Path) -> Members:
    """Open a folder, a zip, or a tar (also one that is compressed).

    Raises:
        DataError: there is nothing, or something else.
    """
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise DataError(f"there is no folder, zip or tar at {path}: give one that holds the images")
    if zipfile.is_zipfile(path):
        return Zip(path)
    if tarfile.is_tarfile(path):
        return Tar(path)
    raise DataError(f"{path} is neither a folder nor a zip nor a tar, or it is cut off")


def open_several(paths: Sequence[Path]) -> Members:
    """Open one or more folders, zips and tars as if they were one.

    Raises:
        DataError: one of them is missing or something else.
    """
    opened = [open_members(path) for path in paths]
    return opened[0] if len(opened) == 1 else Several(opened)


class Several:
    """The files of several folders and archives; where a name comes twice, the first's."""

    def __init__(self, parts: Sequence[Members]) -> None:
        self._parts = parts
        self.serial = any(part.serial for part in parts)

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every file of the first, then of the second, ..."""
        for number, part in enumerate(self._parts):
            for name, fault in part.listing():
                again = any(other.stamp(name) is not None for other in self._parts[:number])
                yield name, fault or ("comes twice; the first is kept" if again else "")

    def _holder(self, name: str) -> tuple[int, Members]:
        for number, part in enumerate(self._parts):
            if part.stamp(name) is not None:
                return number, part
        raise DataError("is in none of the archives")

    def find(self, name: str) -> str | None:
        """Return the name under which the first that has the file has it."""
        exact = next((name for part in self._parts if part.stamp(name) is not None), None)
        return exact or next((found for part in self._parts if (found := part.find(name))), None)

    def stamp(self, name: str) -> list[int] | None:
        """Return the stamp that the first gives that has the file."""
        return next((found for part in self._parts if (found := part.stamp(name))), None)

    def place(self, name: str) -> int:
        """Return which one has the file, and where, as one number."""
        number, part = self._holder(name)
        return (number << 48) + part.place(name)

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return self._holder(name)[1].read(name)


class Folder:
    """The files below a folder, sorted within each folder; links are followed."""

    serial = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every file below the folder, without hidden ones."""
        yield from self._walk("")

    def _walk(self, below: str) -> Iterator[tuple[str, str]]:
        with os.scandir(self.root / below) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
        for name, folder in found:
            whole = f"{below}/{name}" if below else name
            if name.startswith(_HIDDEN):
                continue
            if folder:
                yield from self._walk(whole)
            else:
                yield whole, ""

    def find(self, name: str) -> str | None:
        """Return the name itself when the file is there."""
        return name if self.stamp(name) is not None else None

    def stamp(self, name: str) -> list[int] | None:
        """Return a file's size."""
        try:
            status = os.stat(self.root / name)
        except (OSError, ValueError):
            return None
        return [status.st_size] if stat.S_ISREG(status.st_mode) else None

    def place(self, name: str) -> int:
        """Return 0: files of a folder have no order."""
        return 0

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        try:
            with open(self.root / name, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        return _not_too_large(data)


class Zip:
    """The members of a zip."""

    serial = False

    def __init__(self, path: Path) -> None:
        """Read the table of contents.

        Raises:
            DataError: it is damaged.
        """
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): download it again") from error
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._bases: dict[str, str | None] = {}
        self._faults: list[tuple[str, str]] = []
        for info in self._zip.infolist():
            if not info.is_dir() and not _hidden(info.filename):
                self._take(info)

    def _take(self, info: zipfile.ZipInfo) -> None:
        fault = _name_fault(info.filename) or ("is encrypted" if info.flag_bits & 1 else "")
        if stat.S_ISLNK(info.external_attr >> 16):
            fault = "is a link"
        if info.filename in self._infos:
            fault = "comes twice in the archive; the first is kept"
        if fault:
            self._faults.append((info.filename, fault))
            return
        self._infos[info.filename] = info
        base = posixpath.basename(info.filename)
        self._bases[base] = None if base in self._bases else info.filename

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every member in the order of the table of contents, then what is faulty."""
        yield from ((name, "") for name in self._infos)
        yield from self._faults

    def find(self, name: str) -> str | None:
        """Return the member's whole name; in another folder when no other has that file name."""
        return name if name in self._infos else self._bases.get(posixpath.basename(name))

    def stamp(self, name: str) -> list[int] | None:
        """Return a member's size and checksum."""
        info = self._infos.get(name)
        return None if info is None else [info.file_size, info.CRC]

    def place(self, name: str) -> int:
        """Return where the member begins."""
        return self._infos[name].header_offset

    def read(self, name: str) -> bytes:
        """Return a member's bytes, checked against its checksum."""
        info = self._infos.get(name)
        if info is None:
            raise DataError("is not in the archive")
        if info.file_size > MAX_BYTES:
            raise DataError(f"has {info.file_size} bytes, more than {MAX_BYTES}")
        try:
            return self._zip.read(info)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise DataError(f"cannot be read from the archive: {error}") from error


class Tar:
    """The members of a tar; one that is compressed is read from front to back."""

    def __init__(self, path: Path) -> None:
        """Read every header once, into a temporary database.

        Raises:
            DataError: it is damaged from its beginning on.
        """
        self._index = temporary_database()
        self._index.execute(
            "CREATE TABLE members (name TEXT PRIMARY KEY, base TEXT, start INTEGER, size INTEGER)"
        )
        self._faults: list[tuple[str, str]] = []
        for name, start, size, fault in scan_tar(path):
            row = (name, posixpath.basename(name), start, size)
            if not fault and not self._add(row):
                fault = "comes twice in the archive; the first is kept"
            if fault:
                self._faults.append((name, fault))
        self._index.execute("CREATE INDEX bases ON members (base)")
        self._tar = tarfile.open(path)  # noqa: SIM115 - kept open as long as the object lives
        self._lock = threading.Lock()
        self.serial = not isinstance(self._tar.fileobj, io.BufferedReader)
        weakref.finalize(self, self._index.close)
        weakref.finalize(self, self._tar.close)

    def _add(self, row: tuple[str, str, int, int]) -> bool:
        sql = "INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?)"
        return self._index.execute(sql, row).rowcount > 0

    def _row(self, name: str) -> tuple[int, int] | None:
        sql = "SELECT start, size FROM members WHERE name = ?"
        found: tuple[int, int] | None = self._index.execute(sql, (name,)).fetchone()
        return found

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every member in the order of the archive, then what is faulty."""
        for (name,) in self._index.execute("SELECT name FROM members ORDER BY start"):
            yield name, ""
        yield from self._faults

    def find(self, name: str) -> str | None:
        """Return the member's whole name; in another folder when no other has that file name."""
        if self._row(name):
            return name
        sql = "SELECT name FROM members WHERE base = ? LIMIT 2"
        found = self._index.execute(sql, (posixpath.basename(name),)).fetchall()
        return str(found[0][0]) if len(found) == 1 else None

    def stamp(self, name: str) -> list[int] | None:
        """Return a member's place and size."""
        row = self._row(name)
        return None if row is None else list(row)

    def place(self, name: str) -> int:
        """Return where the member's bytes begin."""
        row = self._row(name)
        return row[0] if row else 0

    def read(self, name: str) -> bytes:
        """Return a member's bytes."""
        row = self._row(name)
        if row is None:
            raise DataError("is not in the archive")
        with self._lock:
            return read_part(cast(io.BufferedIOBase, self._tar.fileobj), *row)


def scan_tar(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield (name, start in bytes, size, fault) of every member that is no folder.

    A tar that is cut off or damaged yields what stands before and then one fault under its own
    name. Nothing is held in memory.

    Raises:
        DataError: it is no tar.
    """
    try:
        tar = tarfile.open(path)  # noqa: SIM115 - closed below
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no tar that can be read ({error}): make it again") from error
    with tar:
        while True:
            try:
                info = tar.next()
            except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
                yield path.stem, 0, 0, f"the archive {path.name} is damaged from here on: {error}"
                return
            if info is None:
                if not _ends_well(tar):
                    fault = f"the archive {path.name} is damaged from here on: it is cut off"
                    yield path.stem, 0, 0, fault
                return
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            if info.isdir() or _hidden(info.name):
                continue
            name = info.name.removeprefix("./")
            yield name, info.offset_data, info.size, _tar_fault(info)


def _ends_well(tar: tarfile.TarFile) -> bool:
    """Whether the block at which tarfile stopped is a tar's end mark, and not half a header."""
    try:
        return not any(
            read_part(cast(io.BufferedIOBase, tar.fileobj), tar.offset, tarfile.BLOCKSIZE)
        )
    except DataError:
        return False


def read_part(file: io.BufferedIOBase, start: int, size: int) -> bytes:
    """Return ``size`` bytes of an open file from ``start`` on.

    Raises:
        DataError: there are fewer, or it cannot be read.
    """
    try:
        file.seek(start)
        data: bytes = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read from the archive: {error}") from error
    if len(data) < size:
        raise DataError(f"the archive ends after {len(data)} of its {size} bytes")
    return data


def base_name(name: str) -> str:
    """Return a member's file name without its folders and its suffix."""
    return posixpath.splitext(posixpath.basename(name))[0]


def suffix(name: str) -> str:
    """Return a member's suffix in small letters, without the dot."""
    return posixpath.splitext(name)[1][1:].lower()


def _hidden(name: str) -> bool:
    return any(part.startswith(_HIDDEN) for part in name.split("/") if part not in ("..", "."))


def _name_fault(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        return "has a name that leaves the archive"
    return ""


def _tar_fault(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link"
    if not info.isreg():
        return "is no regular file"
    if info.size > MAX_BYTES:
        return f"has {info.size} bytes, more than {MAX_BYTES}"
    return _name_fault(info.name)


def _not_too_large(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise DataError(f"has more than {MAX_BYTES} bytes")
    return data
