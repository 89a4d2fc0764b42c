"""Human captions that predictions are scored against, and whose caption each text is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmail_align.artifacts import MANIFEST, Artifact, load
from gmail_align.data.captions import iter_captions
from gmail_align.data.json_files import file_fingerprint, read_json
from gmail_align.data.npy import read_integers
from gmail_align.errors import DataError


@dataclass(frozen=True)
class References:
    """Human captions.

    Attributes:
        rows: (image id, caption) in the order of the source.
        fingerprint: Identity of the source.
    """

    rows: Sequence[tuple[str, str]]
    fingerprint: str

    def by_image(self) -> dict[str, list[str]]:
        """Return image id -> its captions, images in the order in which they first come."""
        grouped: dict[str, list[str]] = {}
        for image_id, text in self.rows:
            grouped.setdefault(image_id, []).append(text)
        return grouped


@dataclass(frozen=True)
class CaptionImages:
    """Which image each caption describes.

    Attributes:
        rows: (caption id, image id) in the order of the source.
        fingerprint: Identity of the source.
        complete: Whether the source numbers the rows of two plain files, so that every row of both
            takes part.
    """

    rows: Sequence[tuple[str, str]]
    fingerprint: str
    complete: bool = False


def open_references(source: Path | Artifact) -> References:
    """Open COCO annotations (``annotations``, each ``{image_id, caption}``) or captions.

    Raises:
        DataError: the file cannot be read or is of another kind, an entry does not have an image id
            or a caption, or an annotation comes twice.
        ArtifactError: the artifact holds something else.
    """
    artifact = opened(source, "captions")
    if artifact is not None:
        rows = [(row.image_id, row.text) for row in iter_captions(artifact)]
        return References(rows, artifact.fingerprint)
    assert isinstance(source, Path)
    body = read_json(source)
    annotations = body.get("annotations") if isinstance(body, dict) else None
    if not isinstance(annotations, list) or not annotations:
        raise DataError(f"{source} does not hold 'annotations': {_what_it_is(body)}")
    if isinstance(annotations[0], dict) and "caption" not in annotations[0]:
        raise DataError(
            f"{source} holds annotations without captions, as of objects or keypoints: give COCO's "
            "captions_*.json"
        )
    rows = list(caption_entries(source, annotations, "caption"))
    ids = [str(entry["id"]) for entry in annotations if "id" in entry]
    if len(set(ids)) != len(ids):
        raise DataError(f"{source} holds {len(ids) - len(set(ids))} annotation ids twice")
    return References(rows, file_fingerprint(source))


def open_caption_images(source: Path | Artifact) -> CaptionImages:
    """Open captions, or a ``.npy`` file with the row of the image of each row of texts.

    Raises:
        DataError: the file cannot be read or holds something else.
        ArtifactError: the artifact holds something else.
    """
    if isinstance(source, Path) and not source.is_dir():
        images = enumerate(read_integers(source))
        rows = [(str(row), str(image)) for row, image in images]
        return CaptionImages(rows, file_fingerprint(source), complete=True)
    artifact = source if isinstance(source, Artifact) else load(source, "captions")
    rows = [(row.caption_id, row.image_id) for row in iter_captions(artifact)]
    return CaptionImages(rows, artifact.fingerprint)


def first_captions(rows: Iterable[tuple[str, str]], most: int | None) -> list[tuple[str, str]]:
    """Return the rows that belong to the first ``most`` captions of their image; all if None.

    Args:
        rows: Image id, and whatever stands for a caption.
        most: How many of an image are kept.
    """
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row[0]] = seen.get(row[0], 0) + 1
        if most is None or seen[row[0]] <= most:
            kept.append(row)
    return kept


def opened(source: Path | Artifact, kind: str) -> Artifact | None:
    """Return the artifact at ``source``; None where a plain file stands.

    Raises:
        ArtifactError: the artifact is of another kind.
    """
    if isinstance(source, Artifact):
        return load(source.folder, kind)
    return load(source, kind) if (source / MANIFEST).exists() else None


def caption_entries(path: Path, entries: Iterable[Any], key: str) -> Iterator[tuple[str, str]]:
    """Yield image id and caption of each entry.

    Args:
        path: The file, for messages.
        entries: Records with ``image_id``, and the caption under ``caption`` or ``text``.
        key: Which of the two is looked for first.

    Raises:
        DataError: an entry does not have an image id or a caption.
    """
    other = "caption" if key == "text" else "text"
    for number, entry in enumerate(entries):
        own: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
        name, text = own.get("image_id"), own.get(key, own.get(other))
        if isinstance(name, float) and name.is_integer():  # as tables with gaps write them
            name = int(name)
        if isinstance(name, bool) or not isinstance(name, int | str) or not isinstance(text, str):
            raise DataError(
                f"entry {number} of {path} does not have an image_id or a {key}: add it"
            )
        yield str(name), text


def _what_it_is(body: Any) -> str:
    """Guess which other file of captions was given, and say what to do."""
    if isinstance(body, list):
        return "it looks like predictions, so give COCO caption annotations as --references"
    images = body.get("images") if isinstance(body, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    if isinstance(first, dict) and "sentences" in first:
        return (
            "it is one of Karpathy's files: import it (gmail-align import karpathy) and give the "
            "folder of captions"
        )
    return "give COCO caption annotations, or a folder of captions"
