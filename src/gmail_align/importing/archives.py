"""Zips and tars, read in place; headers and members are bounded before they are read."""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
import threading
import unicodedata
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, cast

from gmail_align.data.unique import temporary_database
from gmail_align.errors import DataError, damage_explained
from gmail_align.importing.members import (
    MAX_BYTES,
    Members,
    Several,
    hidden,
    name_fault,
    open_folder,
    spellings,
)
from gmail_align.remote import is_folder, open_url, shown, url_of

MAX_HEADER: Final = 2**20
"""Most bytes of a tar's long name or extended header."""

TARS: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Suffixes of tars that can be read here."""

_EXTENDED: Final = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


def open_members(path: Path) -> Members:
    """Open a folder, a zip, or a tar (also one that is compressed).

    Raises:
        DataError: there is nothing, or something else.
    """
    url = url_of(path)
    if os.path.isdir(path) or (url is not None and is_folder(url)):
        return open_folder(path)  # unlike Path.is_dir, isdir does not raise for a name too long
    if url is None and not os.path.isfile(path):
        raise DataError(f"there is no folder, zip or tar at {path}: give one that holds the images")
    with damage_explained(shown(path)), _opened(path) as file:
        if zipfile.is_zipfile(file):
            return Zip(path)
    try:
        open_tar(path).close()
    except DataError as error:
        if not isinstance(error.__cause__, tarfile.ReadError):
            raise
        raise DataError(
            f"{shown(path)} is neither a folder nor a zip nor a tar, or it is cut off"
        ) from error
    return Tar(path)


def open_several(paths: Sequence[Path]) -> Members:
    """Open one or more folders, zips and tars as if they were one.

    Raises:
        DataError: one of them is missing or something else.
    """
    opened = [open_members(path) for path in paths]
    if len(opened) == 1:
        return opened[0]
    labels = [path.name.partition(".")[0] or str(number) for number, path in enumerate(paths)]
    return Several(opened, labels)


def _opened(path: Path) -> io.BufferedReader:
    """Open a file, also one behind a URL."""
    url = url_of(path)
    return path.open("rb") if url is None else open_url(url)


class _Index:
    """Name, place and size of the members of an archive, in a temporary database."""

    def __init__(self) -> None:
        self._database = temporary_database()
        self._database.execute(
            "CREATE TABLE members (n INTEGER PRIMARY KEY, name TEXT UNIQUE, back TEXT, "
            "start INTEGER, size INTEGER, sum INTEGER, again INTEGER DEFAULT 0)"
        )
        self._database.execute("CREATE INDEX backs ON members (back)")
        weakref.finalize(self, self._database.close)

    def add(self, name: str, start: int, size: int, checksum: int = 0) -> bool:
        """Add a member; False when there is one of that name."""
        row = (name, _backwards(name), start, size, checksum)
        sql = "INSERT OR IGNORE INTO members (name, back, start, size, sum) VALUES (?, ?, ?, ?, ?)"
        if self._database.execute(sql, row).rowcount > 0:
            return True
        self._database.execute("UPDATE members SET again = 1 WHERE name = ?", (name,)).close()
        return False

    def names(self) -> Iterator[str]:
        for (name,) in self._database.execute("SELECT name FROM members ORDER BY n"):
            yield name

    def row(self, name: str) -> tuple[int, int, int]:
        """Return start, size and checksum.

        Raises:
            DataError: the archive does not have it.
        """
        sql = "SELECT start, size, sum FROM members WHERE name = ?"
        row: tuple[int, int, int] | None = self._database.execute(sql, (name,)).fetchone()
        if row is None:
            fault = name_fault(name)
            other = next(iter(self._ending_in(posixpath.basename(name.replace("\\", "/")))), None)
            more = f", but {other}: names are compared with their folders" if other else ""
            raise DataError(f"{name} {fault}" if fault else f"there is no file {name}{more}")
        return row

    def find(self, name: str) -> str | None:
        """Return the whole name of the member that a name stands for.

        It is the member of that name, in whatever Unicode form. Else it is the only one whose path
        ends with the name, or else the one whose path the name ends with: folders of other names
        never stand for each other.

        Raises:
            DataError: the name stands for several members, or for one that comes twice.
        """
        found = self._find(name)
        sql = "SELECT again FROM members WHERE name = ?"
        if found and self._database.execute(sql, (found,)).fetchone()[0]:
            raise DataError(f"{found} comes twice in the archive: keep one")
        return found

    def _find(self, name: str) -> str | None:
        if name_fault(name.replace("\\", "/")):
            return None
        for spelling in spellings(name):
            sql = "SELECT name FROM members WHERE name = ?"
            if row := self._database.execute(sql, (spelling,)).fetchone():
                return str(row[0])
        rest = posixpath.normpath(name.replace("\\", "/"))
        hits = self._equal_to(rest) or self._ending_in(rest)
        while not hits and "/" in rest:
            rest = rest.partition("/")[2]
            hits = self._equal_to(rest)
        if len(hits) > 1:
            raise DataError(f"{name} may be {hits[0]} or {hits[1]}: name the file with its folder")
        return hits[0] if hits else None

    def _equal_to(self, name: str) -> list[str]:
        """Return the first two members of a name, in whatever Unicode form."""
        sql = "SELECT name FROM members WHERE back = ? LIMIT 2"
        return [row[0] for row in self._database.execute(sql, (_backwards(name),))]

    def _ending_in(self, name: str) -> list[str]:
        """Return the first two members whose path ends with a name that begins at a folder."""
        back = _backwards(name)
        sql = "SELECT name FROM members WHERE back > ? AND back < ? LIMIT 2"
        return [row[0] for row in self._database.execute(sql, (f"{back}/", f"{back}0"))]


def _backwards(name: str) -> str:
    """Return a composed name from its end on: a tail of a path becomes a beginning."""
    return unicodedata.normalize("NFC", name)[::-1]


class Zip:
    """The members of a zip."""

    serial = False

    def __init__(self, path: Path) -> None:
        """Read the table of contents.

        Raises:
            DataError: it is damaged.
        """
        self._index = _Index()
        self._faults: list[tuple[str, str]] = []
        with damage_explained(shown(path)):
            url = url_of(path)
            self._zip = zipfile.ZipFile(path if url is None else open_url(url))
        self._infos = {info.header_offset: info for info in self._zip.infolist()}
        for info in self._zip.infolist():
            name = info.filename.replace("\\", "/")  # as some programs for Windows write folders
            if not name.endswith("/") and not hidden(name):
                self._take(name, info)
        weakref.finalize(self, self._zip.close)

    def _take(self, name: str, info: zipfile.ZipInfo) -> None:
        fault = name_fault(name) or ("is encrypted" if info.flag_bits & 1 else "")
        if stat.S_ISLNK(info.external_attr >> 16):
            fault = "is a link"
        if not fault and not self._index.add(name, info.header_offset, info.file_size, info.CRC):
            fault = "comes twice in the archive; the first is kept"
        if fault:
            self._faults.append((name, fault))

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every member in the order of the table of contents, then what is faulty."""
        yield from ((name, "") for name in self._index.names())
        yield from self._faults

    def find(self, name: str) -> str | None:
        """Return the whole name of the member that a name stands for."""
        return self._index.find(name)

    def stamp(self, name: str) -> list[int]:
        """Return a member's size and checksum."""
        return list(self._index.row(name)[1:])

    def place(self, name: str) -> int:
        """Return where the member begins."""
        return self._index.row(name)[0]

    def read(self, name: str) -> bytes:
        """Return a member's bytes, checked against its checksum."""
        start, size, _ = self._index.row(name)
        if size > MAX_BYTES:
            raise DataError(f"has {size} bytes, more than {MAX_BYTES}")
        with damage_explained("the member"):
            return self._zip.read(self._infos[start])


class Tar:
    """The members of a tar; one that is compressed is read from front to back."""

    def __init__(self, path: Path) -> None:
        """Read every header once.

        Raises:
            DataError: it is damaged from its beginning on.
        """
        self._index = _Index()
        self._faults: list[tuple[str, str]] = []
        for name, start, size, fault in scan_tar(path):
            if not fault and not self._index.add(name, start, size):
                fault = "comes twice in the archive; the first is kept"
            if fault:
                self._faults.append((name, fault))
        self._tar = open_tar(path)
        self._lock = threading.Lock()
        self.serial = not isinstance(self._tar.fileobj, io.BufferedReader)
        weakref.finalize(self, self._tar.close)

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every member in the order of the archive, then what is faulty."""
        yield from ((name, "") for name in self._index.names())
        yield from self._faults

    def find(self, name: str) -> str | None:
        """Return the whole name of the member that a name stands for."""
        return self._index.find(name)

    def stamp(self, name: str) -> list[int]:
        """Return a member's size and place."""
        start, size, _ = self._index.row(name)
        return [size, start]

    def place(self, name: str) -> int:
        """Return where the member's bytes begin."""
        return self._index.row(name)[0]

    def read(self, name: str) -> bytes:
        """Return a member's bytes."""
        start, size, _ = self._index.row(name)
        with self._lock:
            return read_part(cast(io.BufferedIOBase, self._tar.fileobj), start, size)


class _BoundedInfo(tarfile.TarInfo):
    """A header whose long names and extended records are measured before they are read."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _EXTENDED and self.size > MAX_HEADER):
            raise DataError(f"a header has the impossible size {self.size}")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


def open_tar(path: Path) -> tarfile.TarFile:
    """Open a tar, compressed or not.

    Raises:
        DataError: it is not a tar, or its first header is damaged.
    """
    where, url = shown(path), url_of(path)
    with damage_explained(path if url is None else where):
        file = None if url is None else open_url(url)
        try:
            return tarfile.open(path if file is None else None, fileobj=file, tarinfo=_BoundedInfo)
        except DataError as error:
            raise DataError(f"{where} is damaged: {error}") from error
        except tarfile.ReadError as error:  # it lists what each of five decompressors says
            raise DataError(f"{where} is not a tar, or it is cut off") from error


def scan_tar(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield (name, start in bytes, size, fault) of every member that is not a folder.

    A tar that is cut off or damaged yields what stands before and then one fault under its own
    name. Nothing is held in memory.

    Raises:
        DataError: it is not a tar.
    """
    with open_tar(path) as tar:
        while True:
            try:
                with damage_explained("the archive"):
                    info = tar.next()
                if info is None and not _ends_well(tar):
                    raise DataError("it is cut off")
            except DataError as error:
                yield path.stem, 0, 0, f"the archive {path.name} is damaged from here on: {error}"
                return
            if info is None:
                return
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            if not info.isdir() and not hidden(info.name):
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
    with damage_explained("the archive"):
        file.seek(start)
        data: bytes = file.read(size)
    if len(data) < size:
        raise DataError(f"the archive ends after {len(data)} of its {size} bytes")
    return data


def _tar_fault(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link"
    if not info.isreg() or info.issparse():
        return "is not a regular file"
    if info.size > MAX_BYTES:
        return f"has {info.size} bytes, more than {MAX_BYTES}"
    return name_fault(info.name.removeprefix("./"))
