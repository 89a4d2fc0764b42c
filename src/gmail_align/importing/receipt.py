"""What an import was asked for and from which files, so that the same again reads nothing.

``import.json`` beside the artifacts holds the options, the size and time of change of every input,
and what came out. Where all of it is still so, the import is done. Anything else is decided by
reading the inputs, as the first time; no artifact's identity depends on this file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import Artifact, canonical_json, load, write_json
from gmail_align.errors import ArtifactError
from gmail_align.runtime import versions

RECEIPT: Final = "import.json"


@dataclass(frozen=True)
class Asked:
    """One import: its options and the state of its inputs before they were read."""

    out: Path
    options: Mapping[str, Any]
    inputs: Mapping[str, Any]

    @classmethod
    def of(cls, what: str, out: Path, options: Mapping[str, Any]) -> Asked:
        """Note options and inputs; every path among the options, alone or in a list, is one."""
        inputs: dict[str, Any] = {}
        plain: dict[str, Any] = {"import": what, "version": versions().get("gmail-align")}
        for name, value in options.items():
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, Path):
                    inputs[str(one.absolute())] = _state(one)
            plain[name] = json.loads(json.dumps(value, default=lambda path: str(path.absolute())))
        return cls(out, plain, inputs)

    def made(self) -> dict[str, Artifact] | None:
        """Return what the same import made before; None when it did not, or anything changed."""
        try:
            before = json.loads((self.out / RECEIPT).read_text(encoding="utf-8"))
            if before["options"] != self.options or before["inputs"] != self.inputs:
                return None
            made = {name: load(self.out / name) for name in before["made"]}
        except (OSError, ValueError, KeyError, TypeError, ArtifactError):
            return None
        same = all(made[name].fingerprint == was for name, was in before["made"].items())
        return made if same and made and None not in self.inputs.values() else None

    def note(self, made: Mapping[str, Artifact]) -> None:
        """Write down that the import is done."""
        prints = {name: artifact.fingerprint for name, artifact in made.items()}
        row = {"options": self.options, "inputs": self.inputs, "made": prints}
        write_json(self.out / RECEIPT, row)


def _state(path: Path) -> list[Any] | None:
    """Return what changes with a file, or any file in a folder; None when it cannot be told."""
    try:
        if path.is_dir():
            digest, count = hashlib.sha256(), 0
            for row in _walk(str(path)):
                digest.update(canonical_json(row).encode(errors="surrogateescape"))
                count += 1
            return [count, digest.hexdigest()[:16]]
        found = path.stat()
    except (OSError, RecursionError):  # links in a circle
        return None
    return [found.st_size, found.st_mtime_ns]


def _walk(folder: str) -> Iterator[list[Any]]:
    """Yield name, size and time of change of every file in a folder and those inside it."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(entry.path)
        elif entry.is_file():
            found = entry.stat()
            yield [entry.path, found.st_size, found.st_mtime_ns]
