"""From what lies on a disk to features of both sides: folders, zips, images or features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gmail_align.artifacts import MANIFEST, Artifact, begin, load, write_jsonl
from gmail_align.data.captions import CAPTIONS
from gmail_align.data.images import INDEX
from gmail_align.data.pairs import read_pairs
from gmail_align.encoders.clip import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, ConfigError, DataError, ModelError
from gmail_align.features.run import extract_images, extract_texts
from gmail_align.gap.folders import (
    Kind,
    class_prompt,
    import_images,
    labels_of,
    pairs_by_name,
    source_paths,
)
from gmail_align.gap.sides import Known


@dataclass(frozen=True)
class Opened:
    """One side: its features, and its images where they were given."""

    features: Artifact
    images: Artifact | None


@dataclass(frozen=True)
class Prepared:
    """Both sides ready to be measured."""

    real: Opened
    generated: Opened
    pairs: Sequence[tuple[str, str]] | None
    known: Known


def check_side(source: Path, encoded: bool) -> str:
    """Return what a side is: ``images``, ``features`` or ``files`` (a folder or zip of images).

    Args:
        source: The path.
        encoded: Whether an encoder is named.

    Raises:
        DataError: there is nothing.
        ArtifactError: it is an artifact of something else.
        ConfigError: images need an encoder.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist: give a folder or zip of images, or an artifact")
    kind = load(source).kind if (source / MANIFEST).exists() else "files"
    if kind not in ("images", "features", "files"):
        raise ArtifactError(f"{source} holds {kind}, but images or features are needed here")
    if kind != "features" and not encoded:
        raise ConfigError(
            f"{source} holds images: name an --encoder to compare them, for example "
            "openai/clip-vit-base-patch16 (tabletop is shipped, and knows drawn scenes only)"
        )
    return kind


def prepare(
    real: Path,
    generated: Path,
    home: Path,
    *,
    encoder: GmailEncoder | None,
    pairs: Artifact | None = None,
    by_name: bool = False,
) -> Prepared:
    """Import and extract what is not features yet, and read pairs, classes and texts.

    Args:
        real: Folder or zip of images, or an artifact of images or features.
        generated: The same.
        home: Folder for what is made on the way.
        encoder: Embeds images and texts; None where features are given.
        pairs: Pairs of the two sides' images.
        by_name: Images of equal names are pairs.

    Raises:
        UserError: a side cannot be used, or nothing can be paired.
    """
    sides = (
        _open(real, "real", home, encoder),
        _open(generated, "generated", home, encoder),
    )
    paths = [None if side.images is None else source_paths(side.images) for side in sides]
    rows = [] if pairs is None else read_pairs(pairs)
    ids = None if pairs is None else [(row.real_image_id, row.generated_image_id) for row in rows]
    known = Known(generators=_generators(sides[1]))
    if paths[0] is not None and paths[1] is not None:
        known = Known(*labels_of(paths[0], paths[1]))
        ids = pairs_by_name(paths[0], paths[1]) if by_name else ids
    elif by_name:
        raise ConfigError("--paired compares names of files: give two folders, or --pairs")
    if encoder is not None:
        known = _with_texts(known, encoder, home, pairs, [row.caption_id for row in rows])
    return Prepared(*sides, ids, known)


def _open(source: Path, kind: Kind, home: Path, encoder: GmailEncoder | None) -> Opened:
    """Return features, made on the way where images were given."""
    if check_side(source, encoder is not None) == "files":
        images = import_images(source, home / f"{kind}-images", kind)
    else:
        images = load(source)
    if images.kind == "features":
        return Opened(images, None)
    assert encoder is not None
    return Opened(extract_images(images, encoder, Route.FROZEN, home / kind), images)


def _generators(side: Opened) -> dict[str, str]:
    """Return what made each image by the index, where there are several."""
    if side.images is None:
        return {}
    try:
        table = pq.read_table(side.images.path(INDEX), columns=["id", "generator"])
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{side.images.folder} is damaged: make it again") from error
    names, makers = (table.column(name).to_pylist() for name in ("id", "generator"))
    return dict(zip(names, makers, strict=True)) if len(set(makers)) > 1 else {}


def _with_texts(
    known: Known, encoder: GmailEncoder, home: Path, pairs: Artifact | None, captions: list[str]
) -> Known:
    """Add text features: the captions of pairs, or else a prompt for every class."""
    try:
        if pairs is not None:
            return replace(
                known, texts=extract_texts(pairs, encoder, home / "texts"), captions=captions
            )
        names = sorted({*known.real_classes.values(), *known.generated_classes.values()})
        if not names:
            return known
        prompts = _class_captions(names, home / "class-prompts")
        return replace(known, texts=extract_texts(prompts, encoder, home / "texts"))
    except ModelError:  # an encoder of images alone
        return known


def _class_captions(names: Sequence[str], out: Path) -> Artifact:
    """Write a prompt for each class; the caption's id is the class."""
    draft = begin(out, "captions", {"format": "classes", "names": list(names)})
    if draft.complete is not None:
        return draft.complete
    rows = [{"caption_id": name, "text": class_prompt(name), "image_id": name} for name in names]
    write_jsonl(draft.path(CAPTIONS), rows)
    return draft.finish({"captions": len(names), "images": len(names)})
