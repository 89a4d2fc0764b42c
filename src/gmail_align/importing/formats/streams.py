"""Files of metadata read one entry at a time: JSON, JSON lines, plain lines; also gzipped."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import sha256_file
from gmail_align.errors import DataError

MAX_LINE: Final = 16 * 2**20
"""Longest line, and longest entry of a JSON file, in bytes."""

_BLOCK: Final = 2**18
_NUMBER: Final = re.compile(r"[-+.0-9eE]*")
_BLANKS: Final = re.compile(r"[ \t\n\r]*")


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file for reading, unpacked on the way when it is gzipped.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                yield raw
                return
            with gzip.open(raw) as file:
                yield file
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"there is no annotation file at {path}: give the right one") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is cut off or damaged ({error}): download it again") from error


def file_digest(path: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        DataError: it is missing.
    """
    try:
        return sha256_file(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"there is no annotation file at {path}: give the right one") from error


def json_items(path: Path, key: str = "") -> Iterator[Any]:
    """Yield the values of a JSON file's list, or of the list under a key of its object.

    Nothing is yielded when the file is of another shape.

    Raises:
        DataError: the file is missing or no JSON.
    """
    with _json(path) as reader:
        if not key and reader.peek() == "[":
            yield from reader.items()
        elif key and reader.peek() == "{":
            for name in reader.names():
                if name == key and reader.peek() == "[":
                    yield from reader.items()
                else:
                    reader.skip()


def json_pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield key and value of every entry of a JSON file's object; nothing for another shape.

    Raises:
        DataError: the file is missing or no JSON.
    """
    with _json(path) as reader:
        if reader.peek() == "{":
            for name in reader.names():
                yield name, reader.value()


def json_keys(path: Path) -> dict[str, str] | None:
    """Return the keys of a JSON file's object with the first sign of each value, None for a list.

    Raises:
        DataError: the file is missing or no JSON.
    """
    found = {}
    with _json(path) as reader:
        if reader.peek() != "{":
            return None
        for name in reader.names():
            found[name] = reader.peek()
            reader.skip()
    return found


class _JsonReader:
    """Reads JSON from a stream; what is held at a time is one value that was asked for."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._place, self._over = "", 0, False
        self._json = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next sign that is no blank; empty at the end of the file."""
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
                raise ValueError("a key is no string")
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
def _json(path: Path) -> Iterator[_JsonReader]:
    with opened(path) as file:
        try:
            yield _JsonReader(file)
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:120]
            raise DataError(f"{path} is not json ({said}): download it again") from error


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield number (from 1) and value of every line; a line that is no JSON yields a DataError.

    Raises:
        DataError: the file is missing.
    """
    for number, text in text_lines(path):
        if isinstance(text, DataError):
            yield number, text
        elif text.strip():
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError):
                yield number, DataError("is no JSON")


def text_lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Yield number (from 1) and text of every line; one that is no UTF-8 yields a DataError.

    Raises:
        DataError: the file is missing or damaged.
    """
    with opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, DataError(f"is longer than {MAX_LINE} bytes")
                continue
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, DataError("is no UTF-8")
