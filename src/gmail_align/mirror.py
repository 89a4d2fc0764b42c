"""A copy of what a run makes, in an object store: files one by one, each manifest last.

A machine that does not have an artifact takes it from there, and so do workers that do not share
a disk. A file that is there is whole, because object stores show no half of one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmail_align.artifacts import (
    DRAFT,
    MANIFEST,
    Artifact,
    Draft,
    canonical_json,
    refuse_difference,
    write_json,
)
from gmail_align.errors import ArtifactError, ConfigError, damage_explained
from gmail_align.remote import (
    download,
    download_checked,
    exists,
    names_below,
    read_range,
    shown,
    size_of,
    upload,
    url_of,
)

IDENTITY = "identity.json"
"""What a mirror is of, while its manifest is not there yet."""
_AGAIN = "delete the folder there and run again"
_IDENTITY = ("kind", "config", "seed", "inputs")


@dataclass(frozen=True)
class Mirror:
    """A folder behind a URL."""

    url: str

    @classmethod
    def at(cls, place: str) -> Mirror:
        """Return the mirror of a URL.

        Raises:
            ConfigError: the place is no URL.
        """
        url = url_of(place)
        if url is None:
            raise ConfigError(f"{place} is not a URL: a mirror is s3://..., gs://... or hf://...")
        return cls(url.rstrip("/"))

    def below(self, name: str) -> Mirror:
        """Return the mirror of a folder inside."""
        return Mirror(f"{self.url}/{name}")

    def begin(self, draft: Draft) -> None:
        """Note what the mirror is of.

        Raises:
            ArtifactError: it is of something else.
        """
        url = f"{self.url}/{IDENTITY}"
        if exists(url):
            refuse_difference(shown(self.url), _object_at(url), draft.identity)
        else:
            path = draft.path(f".{IDENTITY}.tmp")
            path.write_text(canonical_json(draft.identity), encoding="utf-8")
            upload(path, url)
            path.unlink()

    def push(self, folder: Path, names: Sequence[str]) -> None:
        """Upload files of a folder in this order."""
        for name in names:
            upload(folder / name, f"{self.url}/{name}")

    def pull(self, folder: Path, names: Sequence[str]) -> bool:
        """Download files into a folder where the last of them is there; False where it is not."""
        if not exists(f"{self.url}/{names[-1]}"):
            return False
        for name in names:
            download(self.url, name, folder)
        return True

    def complete(self, artifact: Artifact) -> None:
        """Upload what the mirror lacks of an artifact, and its manifest last."""
        if not exists(f"{self.url}/{MANIFEST}"):
            there = names_below(self.url) if exists(f"{self.url}/{IDENTITY}") else {}
            files = [name for name in artifact.manifest["files"] if name not in there]
            self.push(artifact.folder, [*files, MANIFEST])

    def fetch(self, folder: Path) -> bool:
        """Download a whole artifact into a folder; False where the mirror does not have it.

        One that is killed leaves a draft, which the next run goes on with.

        Raises:
            ArtifactError: the mirror is damaged.
        """
        url = f"{self.url}/{MANIFEST}"
        if not exists(url):
            return False
        with damage_explained(shown(url), ArtifactError, _AGAIN):
            there = _object_at(url)
            files, identity = dict(there["files"]), {name: there[name] for name in _IDENTITY}
        write_json(folder / DRAFT, {**identity, "seconds": 0.0, "begun": time.time()})
        download_checked(self.url, files, folder)
        download(self.url, MANIFEST, folder)
        (folder / DRAFT).unlink()
        return True


def _object_at(url: str) -> dict[str, Any]:
    """Return the JSON object behind a URL.

    Raises:
        ArtifactError: it is none.
    """
    with damage_explained(shown(url), ArtifactError, _AGAIN):
        return dict(json.loads(read_range(url, 0, size_of(url))))
