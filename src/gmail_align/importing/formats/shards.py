"""WebDataset shards: tars whose members share a key, read in place."""

from __future__ import annotations

import tarfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Any, Final, cast

from pydantic import Field

from gmail_align.artifacts import fingerprint
from gmail_align.data.decode import SUFFIXES
from gmail_align.data.ids import key_id, numbered
from gmail_align.errors import DataError
from gmail_align.importing.archives import TARS, open_tar, read_part, scan_tar
from gmail_align.importing.source import Source
from gmail_align.importing.splits import SplitChoice, files_in
from gmail_align.importing.staging import Staging
from gmail_align.importing.streams import (
    MAX_LINE,
    MAX_TEXT,
    Inside,
    file_size,
    json_value,
    require_file,
    text_lines,
)

_TEXT_KINDS: Final = ("txt", "caption", "json")


def webdataset(
    source: Annotated[
        Sequence[Path],
        Field(description="Shards, or folders of them; may be repeated.", min_length=1),
    ],
    caption: Annotated[
        str, Field(description="Field of .json that holds the caption of an image without a .txt.")
    ] = "caption",
    shard_keys: Annotated[
        bool, Field(description="Put the shard's name before each key: keys begin again in each.")
    ] = False,
    split: SplitChoice = None,
) -> Source:
    """Import WebDataset shards; only images, texts and json are read, nothing is unpickled."""
    return shard_source(source, "webdataset", caption, shard_keys=shard_keys, split=split)


def shard_source(
    places: Sequence[Path],
    name: str,
    caption: str = "caption",
    *,
    shard_keys: bool = False,
    split: str | None = None,
) -> Source:
    """List WebDataset shards, such as img2dataset writes: ``key.jpg``, ``key.txt``, ``key.json``.

    The captions are the lines of the ``.txt`` (or ``.caption``) member, else the field ``caption``
    of ``.json``.

    Args:
        places: The shards, or folders of them.
        name: The format that the manifests name.
        caption: Field of the json that holds the caption.
        shard_keys: Put the shard's name before each key, where keys begin again in every shard.
        split: The split to keep where the shards are named by it.
    """
    staging, paths = Staging(), files_in(places, TARS, split)
    for number, path in enumerate(paths):
        prefix = f"{path.name.partition('.')[0]}-" if shard_keys else ""
        try:
            require_file(path)
            with open_tar(path) as tar:
                file = cast(BufferedIOBase, tar.fileobj)
                for sample in _samples(path, number, file, caption):
                    _add_sample(staging, sample, prefix)
        except DataError as error:
            staging.refuse("images", key_id(path.name), str(error))
    config = {"format": name, "caption": caption, **({"shard_keys": True} if shard_keys else {})}
    inputs = {
        "shards": fingerprint([[path.name, file_size(path)] for path in paths]),
        "listed": staging.fingerprint(),
    }
    return Source(config=config, inputs=inputs, staging=staging, members=Shards(paths))


class Shards:
    """The members of several tars, by the place that the listing gave them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Keep the paths of the shards in their order."""
        self.serial = True
        self._paths, self._open = paths, -1
        self._tar: tarfile.TarFile | None = None
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self.__dict__)

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield nothing: the importer lists the samples."""
        yield from ()

    def find(self, name: str) -> str | None:
        """Return the place itself."""
        return name

    def stamp(self, name: str) -> list[int]:
        """Return size, shard and start."""
        shard, start, size = self._parts(name)
        return [size, shard, start]

    def place(self, name: str) -> int:
        """Return shard and start as one number."""
        shard, start, _ = self._parts(name)
        return (shard << 44) + start

    def read(self, name: str) -> bytes:
        """Return a member's bytes."""
        shard, start, size = self._parts(name)
        with self._lock:
            if shard != self._open or self._tar is None:
                _close(self.__dict__)
                self._tar, self._open = open_tar(self._paths[shard]), shard
            return read_part(cast(BufferedIOBase, self._tar.fileobj), start, size)

    def _parts(self, name: str) -> tuple[int, int, int]:
        shard, start, size = (int(part) for part in name.split(":")[:3])
        return shard, start, size


def _close(state: dict[str, Any]) -> None:
    if state.get("_tar") is not None:
        state["_tar"].close()


@dataclass
class _Sample:
    """The members of one key of a shard that are of use, what is wrong with some, and others."""

    key: str = ""
    image: str = ""
    texts: list[Any] = field(default_factory=list)
    kind: str = ""
    faults: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def _samples(path: Path, shard: int, file: BufferedIOBase, column: str) -> Iterator[_Sample]:
    """Group the members of a shard by key; the same key again later is another sample."""
    sample, seen = _Sample(), set[str]()
    for name, start, size, fault in scan_tar(path):
        folder, _, base = name.rpartition("/")
        stem, _, kind = base.partition(".")
        key, kind = (f"{folder}/{stem}" if folder else stem), kind.lower()
        if fault and (not kind or start == 0):
            yield _Sample(key or name, faults=[f"{name} {fault}"])
            continue
        if key != sample.key:
            if sample.key:
                yield sample
            sample, seen = _Sample(key), set()
        if kind in seen:
            yield _Sample(key, faults=[f"{name} comes twice in {path.name}; the first is kept"])
            continue
        seen.add(kind)
        if fault:
            sample.faults.append(f"{name} {fault}")
        elif kind not in SUFFIXES and kind.rpartition(".")[2] in SUFFIXES:
            yield _Sample(key, faults=[f"{name} has the key {key}, which ends at a dot: rename it"])
        elif kind in SUFFIXES and sample.image:
            yield _Sample(key, faults=[f"{name} is the second image of its key; the first is kept"])
        elif kind in SUFFIXES:
            sample.image = f"{shard}:{start}:{size}:{name}"
        elif kind in _TEXT_KINDS:
            _read_text(sample, kind, column, file, (start, size))
        else:
            sample.others.append(name)
    if sample.key:
        yield sample


def _read_text(
    sample: _Sample, kind: str, column: str, file: BufferedIOBase, part: tuple[int, int]
) -> None:
    """Keep the captions of a member, unless one of a better kind was read before."""
    if sample.kind and _TEXT_KINDS.index(sample.kind) < _TEXT_KINDS.index(kind):
        return
    sample.kind = kind
    try:
        if part[1] > (MAX_LINE if kind == "json" else MAX_TEXT):
            raise DataError(f"its .{kind} has {part[1]} bytes, more than a caption can")
        member = Inside(f"{sample.key}.{kind}", read_part(file, *part))
        if kind == "json":
            sample.texts = _json_texts(json_value(member), column)
        else:
            lines = [text for _, text in text_lines(member)]
            sample.texts = [one for one in lines if isinstance(one, DataError) or one.strip()]
            sample.texts = sample.texts or [""]
    except DataError as error:
        sample.texts = [error]


def _json_texts(value: Any, column: str) -> list[Any]:
    text = value.get(column) if isinstance(value, dict) else None
    if isinstance(text, list):
        return text
    return [] if text is None else [text]


def _add_sample(staging: Staging, sample: _Sample, prefix: str) -> None:
    """List a sample; captions of an image that is left out stay. A key is that of one sample."""
    image_id = key_id(f"{prefix}{sample.key}")
    captions = [(numbered(image_id, k), text) for k, text in enumerate(sample.texts)]
    staging.pass_over(sample.others)
    if (sample.image or captions) and not staging.claim(image_id):
        staging.refuse("images", image_id, f"the key {sample.key} comes twice; the first is kept")
        for caption_id, _ in captions:
            staging.refuse("captions", caption_id, "its key comes twice; the first is kept")
    elif sample.faults or not sample.image:
        reasons = sample.faults or [f"{sample.key} does not have an image"]
        staging.refuse("images", image_id, reasons[0])
        staging.add_captions(image_id, captions)
    else:
        staging.add(image_id, sample.image, captions)
