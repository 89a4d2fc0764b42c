"""The reading layer: files of text, read one entry at a time, whatever their encoding.

JSON, JSON lines and plain lines, gzipped or not, in UTF-8, or in UTF-16 with a byte-order mark.
What cannot be read is yielded as a :class:`DataError` in the place of the entry, so that the
importers list it with its reason.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

from gmail_align.errors import DataError, damage_explained
from gmail_align.remote import open_url, shown, size_of, url_of

MAX_LINE: Final = 16 * 2**20
"""Longest line, and longest entry of a JSON file, in bytes."""

MAX_TEXT: Final = 2**20
"""Largest file of one image's captions, in bytes."""

_BLOCK: Final = 2**18
_NUMBER: Final = re.compile(r"[-+.0-9eE]*")
_BLANKS: Final = re.compile(r"[ \t\n\r]*")
_PACKED: Final = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ": "packed by xz",
    b"BZh": "packed by bzip2",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
}
_WIDE: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Inside:
    """A file that lies inside an archive: its name, and its bytes."""

    name: str
    data: bytes

    def __str__(self) -> str:
        """Return the name, for messages."""
        return self.name


TextFile = Path | Inside


@runtime_checkable
class ByteStream(Protocol):
    """What is needed of an open file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes; all without a size."""

    def readline(self, size: int = -1, /) -> bytes:
        """Return the bytes up to the next line's beginning."""


class Lines:
    """The lines of a file, which end with LF, CRLF or CR; some of them can be given back."""

    def __init__(self, file: ByteStream) -> None:
        """Read from an open file."""
        self._file = file
        self._waiting: deque[bytes] = deque()

    def read(self) -> bytes:
        """Return the next line, at most :data:`MAX_LINE` bytes of it; empty at the end."""
        if not self._waiting:
            line = self._file.readline(MAX_LINE)
            if b"\r" not in line.removesuffix(b"\n").removesuffix(b"\r"):
                return line
            while len(line) >= MAX_LINE and not line.endswith(b"\n"):
                *whole, rest = line.splitlines(keepends=True)
                self._waiting += whole
                line = rest + self._file.readline(MAX_LINE - len(rest))
                if line == rest:
                    break
            self._waiting += line.splitlines(keepends=True)
        return self._waiting.popleft()

    def give_back(self, lines: Sequence[bytes]) -> None:
        """Put lines back, to be read again."""
        self._waiting.extendleft(reversed(lines))


@contextmanager
def opened(path: TextFile) -> Iterator[ByteStream]:
    """Open a file of text as a stream of UTF-8 without a byte-order mark, unpacked if gzipped.

    Raises:
        DataError: it is missing, damaged, or an archive.
    """
    with _raw(path) as raw, damage_explained(shown(str(path))):
        head = raw.read(8)
        raw.seek(0)
        _refuse_archive(path, head)
        if not head.startswith(b"\x1f\x8b"):
            yield _decoded(raw)
            return
        with gzip.open(raw) as file:
            yield _decoded(cast(BufferedIOBase, file))


@contextmanager
def _raw(path: TextFile) -> Iterator[BufferedIOBase]:
    if isinstance(path, Inside):
        yield io.BytesIO(path.data)
        return
    require_file(path)
    url = url_of(path)
    if url is None and not path.stat().st_size:  # some files of the system would be waited for
        yield io.BytesIO()
        return
    with path.open("rb") if url is None else open_url(url) as file:
        yield file


def require_file(path: Path) -> None:
    """Check that a file is there and can be read twice, as a pipe cannot.

    Raises:
        DataError: it is not.
    """
    if (url := url_of(path)) is not None:
        size_of(url)
        return
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise DataError(f"there is no annotation file at {path}: give the right one") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not regular:
        raise DataError(f"there is no annotation file at {path}: it is not a regular file")


def _refuse_archive(path: TextFile, head: bytes) -> None:
    for magic, what in _PACKED.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}: unpack it, and give the file inside")


def _decoded(file: BufferedIOBase) -> ByteStream:
    head = file.read(4)
    for mark, encoding in _WIDE.items():
        if head.startswith(mark):
            file.seek(0)
            return cast(ByteStream, codecs.EncodedFile(file, "utf-8", encoding))
    file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
    return file


def file_digest(path: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        DataError: it is missing.
    """
    require_file(path)
    with damage_explained(shown(path)), _raw(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_size(path: Path) -> int:
    """Return the size of a file in bytes, also of one behind a URL."""
    url = url_of(path)
    return path.stat().st_size if url is None else size_of(url)


def json_value(path: TextFile) -> Any:
    """Return what a small JSON file holds.

    Raises:
        DataError: the file is missing or not JSON.
    """
    with _json(path) as reader:
        value = reader.value()
        reader.end()
        return value


def json_items(path: TextFile, key: str = "") -> Iterator[Any]:
    """Yield the values of a JSON file's list, or of the list under a key of its object.

    Nothing is yielded when the file is of another shape.

    Raises:
        DataError: the file is missing or not JSON.
    """
    with _json(path) as reader:
        if not key and reader.peek() == "[":
            yield from reader.items()
            reader.end()
        elif key and reader.peek() == "{":
            for name in reader.names():
                if name == key and reader.peek() == "[":
                    yield from reader.items()
                else:
                    reader.skip()
            reader.end()


def json_pairs(path: TextFile) -> Iterator[tuple[str, Any]]:
    """Yield key and value of every entry of a JSON file's object; nothing for another shape.

    Raises:
        DataError: the file is missing or not JSON.
    """
    with _json(path) as reader:
        if reader.peek() == "{":
            for name in reader.names():
                yield name, reader.value()
            reader.end()


def json_keys(path: TextFile) -> dict[str, str] | None:
    """Return the keys of a JSON file's object with the first sign of each value, None for a list.

    Raises:
        DataError: the file is missing or not JSON.
    """
    keys = {}
    with _json(path) as reader:
        if reader.peek() != "{":
            return None
        for name in reader.names():
            keys[name] = reader.peek()
            reader.skip()
        reader.end()
    return keys


def is_json_lines(path: TextFile) -> bool:
    """Whether a file named .json has one object a line, as many tools write them."""
    with opened(path) as file:
        lines = Lines(file)
        try:
            return all(isinstance(json.loads(lines.read()), dict) for _ in range(2))
        except (ValueError, RecursionError):
            return False


class _JsonReader:
    """Reads JSON from a stream; what is held at a time is one value that was asked for."""

    def __init__(self, file: ByteStream) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._place, self._over = "", 0, False
        self._json = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is not a blank; empty at the end of the file."""
        while True:
            self._place = _BLANKS.match(self._text, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._text) or self._over:
                return self._text[self._place : self._place + 1]
            self._more()

    def value(self) -> Any:
        """Read the next value whole."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError:
                if self._over or len(self._text) - self._place > MAX_LINE:
                    raise
                self._more()
                continue
            further = _NUMBER.match(self._text, end)
            if self._over or (further and further.end() < len(self._text)):
                self._place = end
                return value
            self._more()  # a number could go on

    def items(self) -> Iterator[Any]:
        """Read the list that comes next, value by value."""
        yield from (self.value() for _ in self._parts("[", "]"))

    def names(self) -> Iterator[str]:
        """Read the object that comes next; the caller reads or skips the value of each key."""
        for _ in self._parts("{", "}"):
            name = self.value()
            if not isinstance(name, str):
                raise ValueError("a key is not a string")
            self._expect(":")
            yield name

    def skip(self) -> None:
        """Read the next value without holding it, as far as its first two levels go."""
        opening = self.peek()
        if opening == "[":
            for _ in self.items():
                pass
        elif opening == "{":
            for _ in self.names():
                self.value()
        else:
            self.value()

    def end(self) -> None:
        """Refuse whatever follows the file's one value: it would be lost."""
        if self.peek():
            raise ValueError("more follows its end; files of one value a line are named .jsonl")

    def _parts(self, opening: str, closing: str) -> Iterator[None]:
        self._expect(opening)
        if self.peek() == closing:
            self._expect(closing)
            return
        while True:
            yield
            if self.peek() != ",":
                break
            self._expect(",")
        self._expect(closing)

    def _expect(self, sign: str) -> None:
        if self.peek() != sign:
            raise ValueError(f"{sign!r} is missing where {self.peek()!r} stands")
        self._place += 1

    def _more(self) -> None:
        """Read on; each time as much again as is waiting, so that large values stay linear."""
        size = max(_BLOCK, len(self._text) - self._place)
        data = self._file.read(size)
        self._over = not data
        self._text = self._text[self._place :] + self._decoder.decode(data, final=not data)
        self._place = 0


@contextmanager
def _json(path: TextFile) -> Iterator[_JsonReader]:
    with opened(path) as file:
        try:
            yield _JsonReader(file)
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"{path} is not json ({reason}): download it again") from error


def json_lines(path: TextFile) -> Iterator[tuple[int, Any]]:
    """Yield number (from 1) and value of every line; a line that is not JSON yields a DataError.

    Raises:
        DataError: the file is missing.
    """
    for number, text in text_lines(path):
        if isinstance(text, DataError):
            yield number, text
        elif text.strip():
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = DataError("is not JSON")
            yield number, value


def text_lines(path: TextFile) -> Iterator[tuple[int, str | DataError]]:
    """Yield number (from 1) and text of every line; one that is not UTF-8 yields a DataError.

    Raises:
        DataError: the file is missing or damaged.
    """
    with opened(path) as file:
        number, lines = 0, Lines(file)
        while line := lines.read():
            number += 1
            if len(line) >= MAX_LINE and not line.endswith((b"\n", b"\r")):
                while (rest := lines.read()) and not rest.endswith((b"\n", b"\r")):
                    pass
                yield number, DataError(f"is longer than {MAX_LINE} bytes")
                continue
            try:
                text: str | DataError = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                text = DataError("is not UTF-8")
            yield number, text
