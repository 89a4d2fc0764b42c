"""Rows of an artifact, of which there are as many as its manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from gmail_align.artifacts import Artifact
from gmail_align.errors import ArtifactError

T = TypeVar("T")


def counted(artifact: Artifact, rows: Iterable[T]) -> Iterator[T]:
    """Yield the rows of an artifact; a copy that broke off between two rows is found at their end.

    Raises:
        ArtifactError: there are more or fewer rows than the manifest says.
    """
    count = 0
    for row in rows:
        count += 1
        yield row
    require_count(artifact, count)


def require_count(artifact: Artifact, count: int) -> None:
    """Check that an artifact has as many rows as its manifest says.

    Raises:
        ArtifactError: it has more or fewer.
    """
    told = artifact.counts.get(artifact.kind)
    if told is not None and told != count:
        raise ArtifactError(
            f"{artifact.folder} holds {count} {artifact.kind} and its manifest tells of {told}: "
            "copy it again, or delete it and make it again"
        )
