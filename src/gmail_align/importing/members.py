"""Files inside a folder, a zip or a tar, listed and read in place: nothing is unpacked to disk.

A name that comes out of an annotation file is a name inside the folder or archive. This is the one
place where names become paths, so it is the one place that keeps them inside.
"""

from __future__ import annotations

import os
import posixpath
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from gmail_align.errors import DataError
from gmail_align.remote import names_below, read_range, url_of

MAX_BYTES: Final = 256 * 2**20
"""Largest file that is read; a larger one is not a usable image."""
MAX_DEPTH: Final = 64
"""Most folders inside one another that are listed."""

ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
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
        """Return the name under which a file is there; in an archive, also below a folder.

        Raises:
            DataError: the name stands for several files.
        """

    def stamp(self, name: str) -> list[int]:
        """Return numbers that change when a file does; the first is its size in bytes.

        Raises:
            DataError: the reason why the file cannot be read.
        """

    def place(self, name: str) -> int:
        """Return where a file lies in an archive, for reading in order; 0 in a folder."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            DataError: the reason why it cannot be read.
        """


class Several:
    """The files of several folders and archives.

    A name that an earlier part has too is told apart by the part's own name: ``second/1.jpg``.
    """

    def __init__(self, parts: Sequence[Members], labels: Sequence[str]) -> None:
        """Keep the parts; ``labels`` are their names."""
        self._parts, self._given = parts, labels
        self._labels = [
            label if labels.count(label) == 1 else f"{label}-{number}"
            for number, label in enumerate(labels)
        ]
        self.serial = any(part.serial for part in parts)

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every file of the first part, then of the second, ..."""
        for number, part in enumerate(self._parts):
            for name, fault in part.listing():
                again = any(_has(other, name) for other in self._parts[:number])
                yield (f"{self._labels[number]}/{name}" if again else name), fault

    def _holder(self, name: str) -> tuple[int, Members, str]:
        for number, part in enumerate(self._parts):
            if _has(part, name):
                return number, part, name
        label, _, rest = name.partition("/")
        if label in self._labels and _has(self._parts[self._labels.index(label)], rest):
            number = self._labels.index(label)
            return number, self._parts[number], rest
        fault = name_fault(name)
        raise DataError(f"{name} {fault}" if fault else f"there is no file {name}")

    def find(self, name: str) -> str | None:
        """Return the name under which the only part that has the file has it.

        Raises:
            DataError: two parts have a file of that name.
        """
        exact = [k for k, part in enumerate(self._parts) if _has(part, name)]
        if self._only(name, exact):
            return name if self._parts[exact[0]].find(name) else None
        label, _, rest = name.partition("/")
        alike = [k for k, one in enumerate(self._given) if label in (one, self._labels[k])]
        found = {k: rest for k in alike if _has(self._parts[k], rest)}
        found = found or {k: one for k, part in enumerate(self._parts) if (one := part.find(name))}
        if not self._only(name, list(found)):
            return None
        ((number, one),) = found.items()
        again = any(_has(part, one) for part in self._parts[:number])
        return f"{self._labels[number]}/{one}" if again else one

    def _only(self, name: str, numbers: Sequence[int]) -> bool:
        """Whether one part has a name; an error where several have it."""
        if len(numbers) > 1:
            both = " and ".join(self._labels[number] for number in numbers[:2])
            raise DataError(f"{name} is in {both}: name the file with its folder")
        return bool(numbers)

    def name_of_folder(self, folder: Path) -> str | None:
        """Return the name of a folder on disk that lies in one of the parts."""
        for label, part in zip(self._labels, self._parts, strict=True):
            if (name := name_of_folder(part, folder)) is not None:
                return posixpath.join(label, name)
        return None

    def stamp(self, name: str) -> list[int]:
        """Return the stamp of the part that has the file."""
        _, part, own = self._holder(name)
        return part.stamp(own)

    def place(self, name: str) -> int:
        """Return which part has the file, and where, as one number."""
        number, part, own = self._holder(name)
        return (number << 48) + part.place(own)

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        _, part, own = self._holder(name)
        return part.read(own)


class Folder:
    """The files below a folder, sorted within each folder; links are followed."""

    serial = False

    def __init__(self, root: Path) -> None:
        """Keep the folder."""
        self.root = root

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every file below the folder, without hidden ones.

        A folder that a link leads to a second time, or one that lies too deep, is a fault. A link
        to a folder above it is passed over.
        """
        seen: set[tuple[int, int]] = set()
        waiting = [("", False)]
        while waiting:
            name, regular = waiting.pop()
            try:
                if regular:
                    yield name, ""
                    continue
                if self._is_above(name):
                    continue  # all that is in it is listed already
                if fault := self._folder_fault(name, seen):
                    yield name, fault
                    continue
                with os.scandir(self.root / name) as entries:
                    inside = sorted((one.name, _is_file(one)) for one in entries)
            except OSError as error:
                yield name or str(self.root), f"cannot be read: {error.strerror}"
                continue
            start = f"{name}/" if name else ""
            waiting += [
                (start + base, file)
                for base, file in reversed(inside)
                if not base.startswith(_HIDDEN)
            ]

    def _is_above(self, name: str) -> bool:
        """Whether a folder is a link to one that it lies in."""
        path = self.root / name
        if not name or not path.is_symlink():
            return False
        target, home = os.path.realpath(path), os.path.realpath(path.parent)
        return os.path.commonpath([target, home]) == target

    def _folder_fault(self, name: str, seen: set[tuple[int, int]]) -> str:
        """Return why a folder, or a file of another kind, cannot be listed."""
        state = os.stat(self.root / name)
        if not stat.S_ISDIR(state.st_mode):
            return "is not a regular file"
        if (state.st_dev, state.st_ino) in seen:
            return "is a link to a folder that is listed already"
        seen.add((state.st_dev, state.st_ino))
        deep = name.count("/") >= MAX_DEPTH
        return f"is more than {MAX_DEPTH} folders deep" if deep else ""

    def find(self, name: str) -> str | None:
        """Return the name under which the file is there: as it is, or in another Unicode form."""
        return next((one for one in spellings(name) if _has(self, one)), None)

    def stamp(self, name: str) -> list[int]:
        """Return a file's size."""
        if fault := name_fault(name):
            raise DataError(f"{name} {fault}")
        try:
            state = os.stat(self.root / name)
        except PermissionError as error:
            raise DataError(f"{name} cannot be read: {error.strerror}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"there is no file {name}") from error
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"there is no file {name}, only a folder or a pipe of that name")
        return [state.st_size]

    def place(self, name: str) -> int:
        """Return 0: files of a folder have no order."""
        return 0

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        if self.stamp(name) == [0]:  # a pipe, and some files of the system, would be waited for
            return b""
        try:
            with open(self.root / name, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_BYTES:
            raise DataError(f"has more than {MAX_BYTES} bytes")
        return data


class RemoteFolder:
    """The files below a folder of an object store."""

    serial = False

    def __init__(self, url: str) -> None:
        """List the folder."""
        self._url = url.rstrip("/")
        self._sizes = {name: size for name, size in names_below(url).items() if not hidden(name)}

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield every file below the folder, without hidden ones."""
        yield from ((name, name_fault(name)) for name in self._sizes)

    def find(self, name: str) -> str | None:
        """Return the name under which the file is there: as it is, or in another Unicode form."""
        return next((one for one in spellings(name) if one in self._sizes), None)

    def stamp(self, name: str) -> list[int]:
        """Return a file's size."""
        if name not in self._sizes:
            fault = name_fault(name)
            raise DataError(f"{name} {fault}" if fault else f"there is no file {name}")
        return [self._sizes[name]]

    def place(self, name: str) -> int:
        """Return 0: files of a folder have no order."""
        return 0

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        (size,) = self.stamp(name)
        if size > MAX_BYTES:
            raise DataError(f"has more than {MAX_BYTES} bytes")
        return read_range(f"{self._url}/{name}", 0, size)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a regular file; a link in a circle is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def open_folder(place: Path) -> Folder | RemoteFolder:
    """Return the files below a folder, on this machine or behind a URL."""
    url = url_of(place)
    return Folder(place) if url is None else RemoteFolder(url)


def name_of_folder(members: Members | None, folder: Path) -> str | None:
    """Return the name that a folder on disk has inside members; None when it lies elsewhere."""
    if isinstance(members, Several):
        return members.name_of_folder(folder)
    if not isinstance(members, Folder) or not folder.is_relative_to(members.root.absolute()):
        return None
    name = folder.relative_to(members.root.absolute()).as_posix()
    return "" if name == "." else name


def _has(members: Members, name: str) -> bool:
    try:
        members.stamp(name)
    except DataError:
        return False
    return True


def spellings(name: str) -> Iterator[str]:
    """Yield a name as it is, with plain slashes, in both Unicode forms, without outer blanks."""
    clean = posixpath.normpath(name.replace("\\", "/")) if name else name
    forms = (plain_name(name), unicodedata.normalize("NFD", clean), plain_name(name.strip()))
    yield from dict.fromkeys((name, clean, *forms))


def plain_name(name: str) -> str:
    """Return the one form of a name that all of its spellings share."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/"))) if name else ""


def name_fault(name: str) -> str:
    """Return why a name cannot be one of a file inside the folder; empty when it can."""
    if name.startswith("/") or ".." in name.split("/"):
        return (
            "has a name that leaves the folder or archive: give the folder that holds the file, "
            "and names relative to that"
        )
    if not is_text(name) or "\0" in name:
        return "has a name that is not UTF-8"
    return ""


def is_text(name: str) -> bool:
    """Whether a name has no half surrogates, as names of files that are not UTF-8 do."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def hidden(name: str) -> bool:
    """Whether a file or one of its folders is hidden, or is macOS's own."""
    return any(part.startswith(_HIDDEN) for part in name.split("/") if part not in ("..", "."))


def base_name(name: str) -> str:
    """Return a member's file name without its folders and its suffix."""
    return posixpath.splitext(posixpath.basename(name))[0]


def suffix(name: str) -> str:
    """Return a member's suffix in small letters, without the dot."""
    return posixpath.splitext(name)[1][1:].lower()


def nothing_found(members: Members, what: str) -> DataError:
    """Return the error of a source that holds nothing of use; it names an archive inside."""
    for name, fault in members.listing():
        if name.lower().endswith(ARCHIVES):
            return DataError(
                f"{what}, but it holds the archive {name}: unpack that one, and give what is inside"
            )
        if fault:
            return DataError(f"{what}: {name[:200]} {fault}")
    return DataError(what)
