"""WebDataset shards: tars whose members share a key, read in place."""

from __future__ import annotations

import json
import tarfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from gmail_align.artifacts import fingerprint
from gmail_align.data.captions import name_id
from gmail_align.data.decode import SUFFIXES
from gmail_align.errors import DataError
from gmail_align.importing.members import read_part, scan_tar
from gmail_align.importing.source import Source, files_in
from gmail_align.importing.staging import Staging, add


class Shards:
    """The members of several tars, by the place that the listing gave them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.serial = True
        self._paths, self._open = paths, -1
        self._tar: tarfile.TarFile | None = None
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self.__dict__)

    def listing(self) -> Iterator[tuple[str, str]]:
        """Yield nothing: samples are listed by :func:`list_webdataset`."""
        yield from ()

    def find(self, name: str) -> str | None:
        """Return the place itself."""
        return name

    def stamp(self, name: str) -> list[int] | None:
        """Return shard, start and size."""
        return [int(part) for part in name.split(":")[:3]]

    def place(self, name: str) -> int:
        """Return shard and start as one number."""
        shard, start, _ = (int(part) for part in name.split(":")[:3])
        return (shard << 44) + start

    def read(self, name: str) -> bytes:
        """Return a member's bytes."""
        shard, start, size = (int(part) for part in name.split(":")[:3])
        with self._lock:
            if shard != self._open or self._tar is None:
                if self._tar is not None:
                    self._tar.close()
                try:
                    self._tar = tarfile.open(self._paths[shard])  # noqa: SIM115
                except (OSError, tarfile.TarError) as error:
                    raise DataError(f"cannot be read from the archive: {error}") from error
                self._open = shard
            return read_part(cast(BufferedIOBase, self._tar.fileobj), start, size)


def _close(state: dict[str, Any]) -> None:
    if state.get("_tar") is not None:
        state["_tar"].close()


@dataclass
class _Sample:
    """The members of one key of a shard that are of use."""

    key: str = ""
    image: str = ""
    text: str | None = None
    fault: str = ""


def list_webdataset(
    staging: Staging, paths: Sequence[Path], *, caption: str = "caption", shard_keys: bool = False
) -> None:
    """List WebDataset shards, such as img2dataset writes: ``key.jpg``, ``key.txt``, ``key.json``.

    The caption is the ``.txt`` (or ``.caption``) member, else the field ``caption`` of ``.json``.
    Nothing else is opened, and nothing is unpickled.

    Args:
        staging: Gets the images and captions.
        paths: The shards in order.
        caption: Field of the json that holds the caption.
        shard_keys: Put the shard's name before each key, where keys begin again in every shard.
    """
    for number, path in enumerate(paths):
        prefix = f"{path.name.partition('.')[0]}-" if shard_keys else ""
        with tarfile.open(path) as tar:
            file = cast(BufferedIOBase, tar.fileobj)
            for sample in _samples(path, number, file, caption):
                _add_sample(staging, sample, prefix)


def _samples(path: Path, shard: int, file: BufferedIOBase, field: str) -> Iterator[_Sample]:
    """Group the members of a shard by key; the same key again later is another sample."""
    sample, seen = _Sample(), set[str]()
    for name, start, size, fault in scan_tar(path):
        folder, _, base = name.rpartition("/")
        stem, _, kind = base.partition(".")
        key, kind = (f"{folder}/{stem}" if folder else stem), kind.lower()
        if fault and (not kind or start == 0):
            yield _Sample(key or name, fault=f"{name} {fault}")
            continue
        if key != sample.key:
            if sample.key:
                yield sample
            sample, seen = _Sample(key), set()
        if kind in seen:
            yield _Sample(key, fault=f"{name} comes twice in {path.name}; the first is kept")
            continue
        seen.add(kind)
        if fault:
            sample.fault = sample.fault or f"{name} {fault}"
        elif kind in SUFFIXES:
            sample.image = f"{shard}:{start}:{size}:{name}"
        elif kind in ("txt", "caption", "json"):
            _read_text(sample, kind, field, file, start, size)
    if sample.key:
        yield sample


def _read_text(
    sample: _Sample, kind: str, field: str, file: BufferedIOBase, start: int, size: int
) -> None:
    if kind == "json" and sample.text is not None:
        return
    try:
        text = read_part(file, start, size).decode("utf-8")
        sample.text = text if kind != "json" else json.loads(text).get(field)
    except (DataError, ValueError, AttributeError, RecursionError):
        sample.text = sample.text or ""


def _add_sample(staging: Staging, sample: _Sample, prefix: str) -> None:
    image_id = name_id(f"{prefix}{sample.key}.x")
    if sample.fault or not sample.image:
        staging.refuse("images", image_id, sample.fault or f"{sample.key} has no image")
    elif not staging.add_image(image_id, sample.image):
        staging.refuse("images", image_id, f"the key {sample.key} comes twice; the first is kept")
    elif sample.text is not None:
        add(staging, image_id, sample.image, [(f"{image_id}-0", sample.text)])


def webdataset(
    source: Annotated[
        Sequence[Path],
        Field(description="Shards, or folders of them; may be repeated.", min_length=1),
    ],
    caption: Annotated[
        str, Field(description="Field of .json that holds the caption where there is no .txt.")
    ] = "caption",
    shard_keys: Annotated[
        bool, Field(description="Put the shard's name before each key: keys begin again in each.")
    ] = False,
) -> Source:
    """Import WebDataset shards; only images, texts and json are read, nothing is unpickled."""
    return shard_source(source, "webdataset", caption=caption, shard_keys=shard_keys)


def shard_source(
    places: Sequence[Path], name: str, *, caption: str = "caption", shard_keys: bool = False
) -> Source:
    """List WebDataset shards under the name of a format."""
    staging, paths = Staging(), files_in(places, (".tar",))
    list_webdataset(staging, paths, caption=caption, shard_keys=shard_keys)
    config = {"format": name, "caption": caption, **({"shard_keys": True} if shard_keys else {})}
    inputs = {
        "shards": fingerprint([[path.name, path.stat().st_size] for path in paths]),
        "listed": staging.fingerprint(),
    }
    return Source(config=config, inputs=inputs, staging=staging, members=Shards(paths))
