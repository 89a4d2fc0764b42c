"""Captions: one line of text each, bound to the image that it describes."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gmail_align.artifacts import Artifact, Draft, write_jsonl
from gmail_align.data.unique import UniqueIds
from gmail_align.errors import ArtifactError, DataError, damage_explained

CAPTIONS: Final = "captions.jsonl"
MAX_CHARACTERS: Final = 20_000
"""Longest caption that is accepted; what is longer is a document, not a caption."""

_NO_TEXT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,89}")
_NAME_LENGTH: Final = 80  # ids of captions and of what is generated from them grow out of it


@dataclass(frozen=True)
class Caption:
    """One caption of one image."""

    caption_id: str
    text: str
    image_id: str


def safe_id(value: str, what: str) -> str:
    """Return ``value`` if it can name a file and a WebDataset sample.

    Ids are 1 to 90 letters, digits, ``_`` and ``-``, and begin with a letter or a digit: no dots
    (they split a sample's name), no slashes (they leave the folder).

    Args:
        value: The id.
        what: What it is the id of, for the message.

    Raises:
        DataError: another id.
    """
    if not _SAFE_ID.fullmatch(value):
        raise DataError(
            f"{what} has the id {value[:100]!r}: ids are 1 to 90 letters, digits, '_' and '-', "
            "beginning with a letter or a digit"
        )
    return value


def name_id(name: str) -> str:
    """Return the id of a file by its name inside its set, without the suffix.

    Folders are set off by ``--``. A name that cannot be an id as it stands has what is unfit
    replaced and ten digits of its hash behind it, so that different names never give one id.
    """
    stem = posixpath.splitext(name)[0]
    plain = stem.replace("/", "--")
    if _SAFE_ID.fullmatch(plain) and len(plain) <= _NAME_LENGTH and "--" not in stem:
        return plain
    fit = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[: _NAME_LENGTH - 11] or "image"
    return f"{fit}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:10]}"


def tidy(text: str) -> str:
    """Return a caption's text with every run of white space made one blank, and none at the ends.

    Raises:
        DataError: nothing is left, it is longer than :data:`MAX_CHARACTERS`, or it holds
            characters that no text has (NUL and other control characters, half surrogates); the
            message goes on from the words "caption that".
    """
    clean = " ".join(text.split())
    if not clean:
        raise DataError("is empty: write one or take the entry out")
    if len(clean) > MAX_CHARACTERS:
        raise DataError(f"has {len(clean)} characters: at most {MAX_CHARACTERS} are accepted")
    if found := _NO_TEXT.search(clean):
        raise DataError(f"holds the character U+{ord(found[0]):04X}: remove it")
    return clean


def write_captions(draft: Draft, captions: Iterable[Caption]) -> int:
    """Write ``captions.jsonl`` in the given order and return how many captions it holds.

    Raises:
        DataError: an id is unsafe or comes twice, or a text is empty.
    """
    seen = UniqueIds()

    def rows() -> Iterator[dict[str, str]]:
        for caption in captions:
            safe_id(caption.caption_id, "a caption")
            safe_id(caption.image_id, f"the image of caption {caption.caption_id}")
            if not seen.add(caption.caption_id):
                raise DataError(f"caption id {caption.caption_id} comes twice: ids must be unique")
            if not caption.text:
                raise DataError(f"caption {caption.caption_id} is empty")
            yield {
                "caption_id": caption.caption_id,
                "text": caption.text,
                "image_id": caption.image_id,
            }

    write_jsonl(draft.path(CAPTIONS), rows())
    return len(seen)


def iter_captions(artifact: Artifact) -> Iterator[Caption]:
    """Yield the captions of an artifact in their order, without holding them all.

    Raises:
        ArtifactError: the artifact holds something else, or its file is damaged.
    """
    with _damage_explained(artifact), _file_of(artifact).open("rb") as file:
        yield from map(_parse, file)


def read_captions(artifact: Artifact) -> list[Caption]:
    """Return the captions of an artifact in their order.

    Raises:
        ArtifactError: the artifact holds something else, or its file is damaged.
    """
    return list(iter_captions(artifact))


@dataclass(frozen=True)
class CaptionShard:
    """Captions that stand next to each other in the file of an artifact."""

    index: int
    """Number of the shard, from 0."""
    start: int
    """Byte at which the first caption begins."""
    count: int
    """Captions in the shard."""

    def read(self, artifact: Artifact) -> list[Caption]:
        """Return the captions of the shard; the rest of the file is not read.

        Raises:
            ArtifactError: the artifact holds something else, or its file is damaged.
        """
        with _damage_explained(artifact), _file_of(artifact).open("rb") as file:
            file.seek(self.start)
            return [_parse(file.readline()) for _ in range(self.count)]


def cut_captions(artifact: Artifact, size: int) -> list[CaptionShard]:
    """Cut a ``captions`` artifact into shards of ``size`` captions, by their place in its file.

    Raises:
        ArtifactError: the artifact holds something else.
    """
    shards: list[CaptionShard] = []
    start = end = count = 0
    with _file_of(artifact).open("rb") as file:
        for line in file:
            end += len(line)
            count += 1
            if count == size:
                shards.append(CaptionShard(len(shards), start, count))
                start, count = end, 0
    return [*shards, CaptionShard(len(shards), start, count)] if count else shards


def _file_of(artifact: Artifact) -> Path:
    if artifact.kind != "captions":
        raise ArtifactError(
            f"{artifact.folder} holds {artifact.kind}, but captions are needed here"
        )
    return artifact.path(CAPTIONS)


def _damage_explained(artifact: Artifact) -> AbstractContextManager[None]:
    advice = f"delete {artifact.folder} and import again"
    return damage_explained(artifact.path(CAPTIONS), ArtifactError, advice)


def _parse(line: bytes) -> Caption:
    row = json.loads(line)
    return Caption(row["caption_id"], row["text"], row["image_id"])
