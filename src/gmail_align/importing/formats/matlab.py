"""Struct arrays of MATLAB 5 files, as the annotations of Stanford Cars are; every size is checked.

The format is MathWorks' "MAT-File Format", Level 5: elements of a type and a size in bytes, padded
to 8 bytes; a matrix is an element that holds flags, dimensions, a name and its data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from gmail_align.errors import DataError, damage_explained

MAX_UNPACKED: Final = 64 * 2**20
"""Most bytes of a compressed element."""

_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHARACTERS = 2, 4
_NUMBERS: Final[Mapping[int, str]] = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
    18: "u4",
}

Value = str | float | None


@dataclass(frozen=True)
class _Matrix:
    kind: int
    count: int
    name: str
    parts: list[tuple[int, bytes]]


def struct_rows(data: bytes, name: str) -> Iterator[dict[str, Value]]:
    """Yield the entries of the struct array ``name``; a field is a text or its first number.

    Raises:
        DataError: the file is damaged, of another version, or does not have the array.
    """
    with damage_explained("the .mat file"):
        rows = _struct_array(data, name)
    yield from rows


def _struct_array(data: bytes, name: str) -> list[dict[str, Value]]:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise DataError("the .mat file is not of MATLAB's version 5: save it with -v6 or -v7")
    for kind, body in _elements(data[128:], order):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(body, MAX_UNPACKED)
            kind, body = next(_elements(unpacked, order), (0, b""))
        if kind == _MATRIX:
            matrix = _matrix(body, order)
            if matrix.name == name and matrix.kind == _STRUCT:
                return _entries(matrix, order)
    raise DataError(f"the .mat file does not have a struct array {name!r}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of every element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data) or (start == place + 4 and size > 4):
            raise DataError("the .mat file is damaged: an element is larger than what holds it")
        yield kind, data[start : start + size]
        place = end


def _matrix(body: bytes, order: str) -> _Matrix:
    elements = _elements(body, order)
    flags, shape, name = (next(elements)[1] for _ in range(3))
    count = 1
    for side in np.frombuffer(shape, f"{order}i4"):
        count *= int(side)
    if not 0 <= count <= len(body):
        raise DataError("the .mat file is damaged: an array is larger than its data")
    kind = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    return _Matrix(kind, count, name.decode("latin-1"), list(elements))


def _entries(matrix: _Matrix, order: str) -> list[dict[str, Value]]:
    elements = iter(matrix.parts)
    width = struct.unpack_from(f"{order}i", next(elements)[1])[0]
    names = next(elements)[1]
    if width < 1:
        raise DataError("the .mat file is damaged: its fields do not have names")
    fields = [
        names[start : start + width].split(b"\0")[0].decode("latin-1")
        for start in range(0, len(names), width)
    ]
    if matrix.count * len(fields) > len(matrix.parts):
        raise DataError("the .mat file is damaged: it ends before its last entry")
    rows = range(matrix.count)
    return [{field: _value(next(elements), order) for field in fields} for _ in rows]


def _value(element: tuple[int, bytes], order: str) -> Value:
    kind, body = element
    if kind != _MATRIX or not body:
        return None
    matrix = _matrix(body, order)
    part = next(iter(matrix.parts), None)
    if part is None or part[0] not in _NUMBERS:
        return None
    numbers = np.frombuffer(part[1], np.dtype(f"{order}{_NUMBERS[part[0]]}"))
    if matrix.kind == _CHARACTERS:
        return "".join(chr(int(one)) for one in numbers)
    return float(numbers[0]) if len(numbers) else None
