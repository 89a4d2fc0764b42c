"""Features: rows of an array and their ids, opened from a feature store or from a ``.npy`` file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

from gmail_align.artifacts import Artifact, load, read_jsonl
from gmail_align.data.json_files import file_fingerprint
from gmail_align.data.names import Names
from gmail_align.data.npy import read_floats
from gmail_align.errors import ArtifactError, DataError, damage_explained
from gmail_align.features.rows import FEATURES as FEATURES
from gmail_align.features.rows import IDS as IDS
from gmail_align.features.rows import KEY, RowFile

_MADE_WITH = ("what", "encoder", "weights", "route")
_DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2)}


@dataclass(frozen=True)
class Features:
    """Rows of features, not normalised, and whose they are."""

    ids: Sequence[str]
    """Id of each row: an image id or a caption id."""
    array: Float[Tensor, "n d"]
    """Mapped from a store: pages are read when rows are, and memory does not grow with n."""
    made_with: Mapping[str, str] = field(default_factory=dict)
    """``what`` (image, text, trunk), ``encoder``, ``weights`` and ``route``, as far as known."""
    name: str = "features"
    """Where they come from, for messages."""
    fingerprint: str = ""
    """Identity of the source."""
    by_row: bool = False
    """Whether ids are row numbers of a plain file."""

    def rows(self, ids: Iterable[str]) -> Int64[Tensor, " k"]:
        """Return the row of each id.

        Raises:
            DataError: an id has no features.
        """
        wanted = ids if isinstance(ids, Sequence) else list(ids)
        rows = self._names.rows(wanted)
        lost = (rows < 0).nonzero()[0]
        if len(lost):
            raise DataError(
                f"{len(lost)} of {len(wanted)} ids have no features, the first of them "
                f"{wanted[int(lost[0])]!r}: extract features from the same images or captions"
            )
        return torch.from_numpy(rows)

    @cached_property
    def _names(self) -> Names:
        return Names.of(self.ids)


def feature_file(folder: Path, count: int, dim: int, dtype: str) -> RowFile:
    """Return the file of a ``(count, dim)`` store, with the header of a safetensors file."""
    code, width = _DTYPES[dtype]
    entry = {"dtype": code, "shape": [count, dim], "data_offsets": [0, count * dim * width]}
    text = json.dumps({KEY: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return RowFile(folder / FEATURES, count, dim * width, len(text).to_bytes(8, "little") + text)


def open_features(source: Path | Artifact) -> Features:
    """Open a ``features`` artifact without reading its rows, or a ``.npy`` file of shape (n, d).

    The ids of a plain file are its row numbers.

    Raises:
        ArtifactError: the artifact holds something else or is damaged.
        DataError: the file cannot be read, holds something else, or a row is not finite.
    """
    if isinstance(source, Path) and not source.is_dir():
        array = read_floats(source)
        ids = Names(map(str, range(len(array))))
        print_of = file_fingerprint(source)
        return Features(ids, array, name=str(source), fingerprint=print_of, by_row=True)
    artifact = source if isinstance(source, Artifact) else load(source)
    if artifact.kind != "features":
        raise ArtifactError(
            f"{artifact.folder} holds {artifact.kind}, but features are needed here"
        )
    with damage_explained(artifact.folder, ArtifactError, "delete it and extract again"):
        with safe_open(artifact.path(FEATURES), framework="pt") as file:
            array = file.get_tensor(KEY)
        ids = Names(str(name) for name in read_jsonl(artifact.path(IDS)))
    if array.ndim != 2 or len(ids) != len(array):
        raise ArtifactError(
            f"{artifact.folder} is damaged: it holds {len(array)} rows for {len(ids)} ids; delete "
            "it and extract again"
        )
    config = artifact.manifest["config"]
    made_with = {name: str(config[name]) for name in _MADE_WITH if config.get(name)}
    return Features(ids, array, made_with, str(artifact.folder), artifact.fingerprint)
