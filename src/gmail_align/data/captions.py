"""Captions: one line of text each, bound to the image that it describes."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gmail_align.artifacts import Artifact, Draft, canonical_json, read_jsonl, write_jsonl
from gmail_align.data.counted import counted, require_count
from gmail_align.data.ids import safe_id
from gmail_align.data.unique import UniqueIds
from gmail_align.errors import ArtifactError, DataError, damage_explained

CAPTIONS: Final = "captions.jsonl"
TEXTS: Final = "text.jsonl"
"""File of the distinct texts of a ``pair-index``."""
MAX_CHARACTERS: Final = 20_000
"""Longest caption that is accepted; what is longer is a document, not a caption."""

_WIDTHLESS: Final = "\ufeff\u200b\u200c\u200d\u2060\u180e "
_BLANK: Final = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a pattern that show nothing
_NO_TEXT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Caption:
    """One caption of one image."""

    caption_id: str
    text: str
    image_id: str


def tidy(text: str) -> str:
    """Return a caption's text with every run of white space made one blank, and none at the ends.

    Characters without width (zero-width blanks, byte-order marks) are removed at the ends.

    Raises:
        DataError: nothing is left, it is longer than :data:`MAX_CHARACTERS`, or it has characters
            that no text has (NUL and other control characters, half surrogates). The message
            continues a sentence whose subject is the caption.
    """
    clean = " ".join(text.split()).strip(_WIDTHLESS)
    if not any(unicodedata.category(one)[0] in "LNPS" and one not in _BLANK for one in clean):
        raise DataError("is empty: write one or remove the entry")
    if len(clean) > MAX_CHARACTERS:
        raise DataError(f"has {len(clean)} characters: at most {MAX_CHARACTERS} are accepted")
    if wrong := _NO_TEXT.search(clean):
        raise DataError(f"has the character U+{ord(wrong[0]):04X}: remove it")
    return clean


def is_usable(text: str) -> bool:
    """Whether :func:`tidy` accepts a text."""
    try:
        tidy(text)
    except DataError:
        return False
    return True


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
        yield from counted(artifact, map(_parse, file))


def iter_numbered(artifact: Artifact) -> Iterator[Caption]:
    """Yield the distinct texts of a ``pair-index``; the number of each is its id."""
    return numbered_captions(read_jsonl(artifact.path(TEXTS)))


def numbered_captions(texts: Iterable[str]) -> Iterator[Caption]:
    """Yield texts as captions whose ids are their numbers."""
    return (Caption(str(number), text, str(number)) for number, text in enumerate(texts))


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

    def __str__(self) -> str:
        """Name the shard in messages."""
        return str(self.index)

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
    shards += [CaptionShard(len(shards), start, count)] if count else []
    require_count(artifact, sum(shard.count for shard in shards))
    return shards


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
    if b"\\u" in line:
        canonical_json(row).encode()  # half a surrogate is not text
    caption = Caption(row["caption_id"], row["text"], row["image_id"])
    if not all(isinstance(value, str) for value in vars(caption).values()):
        raise ValueError(f"caption {caption.caption_id!r} holds a value that is not text")
    return caption
