"""From what lies on a disk to features of both sides: folders, zips, images or features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from gmail_align.artifacts import MANIFEST, Artifact, begin, load, write_jsonl
from gmail_align.data.captions import CAPTIONS
from gmail_align.data.images import INDEX, ImageStore
from gmail_align.data.pairs import read_pairs
from gmail_align.encoders.clip import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, ConfigError, DataError, ModelError
from gmail_align.features.run import extract_images, extract_texts
from gmail_align.gap.config import GapConfig
from gmail_align.gap.folders import (
    Kind,
    class_prompt,
    import_images,
    labels_of,
    pairs_by_name,
    source_paths,
)
from gmail_align.gap.sides import Known, sample_rows
from gmail_align.progress import say

KINDS: Final[tuple[Kind, Kind]] = ("real", "generated")
Pairs = list[tuple[str, str]]
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where the two sides come from and how they are read.

    Attributes:
        real: Folder or zip of images, or an artifact of images or features.
        generated: The same.
        home: Folder for what is made on the way.
        pairs: Pairs of the two sides' images.
        by_name: Images of equal names are pairs.
        most: Pairs, or images of each side, that are looked at; no more are extracted.
        seed: Of the choice of these.
    """

    real: Path
    generated: Path
    home: Path
    pairs: Artifact | None = None
    by_name: bool = False
    most: int = GapConfig().max_pairs
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """Features of both sides, ready to be measured."""

    real: Artifact
    generated: Artifact
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


def prepare(source: Source, encoder: GmailEncoder | None) -> Prepared:
    """Import and extract what is not features yet, and read pairs, classes and texts.

    Args:
        source: The two sides.
        encoder: Embeds images and texts; None where features are given.

    Raises:
        UserError: a side cannot be used, or nothing can be paired.
    """
    sides = _side(source, "real", encoder), _side(source, "generated", encoder)
    paths = [source_paths(side) if side.kind == "images" else None for side in sides]
    known, pairs, captions = Known(generators=_generators(sides[1])), None, None
    if source.pairs is not None:
        rows = _some(read_pairs(source.pairs), source, "pairs")
        pairs = [(row.real_image_id, row.generated_image_id) for row in rows]
        captions = [row.caption_id for row in rows]
    if paths[0] is not None and paths[1] is not None:
        known = Known(*labels_of(paths[0], paths[1]))
        if source.by_name:
            pairs = _some(pairs_by_name(paths[0], paths[1]), source, "pairs")
    elif source.by_name:
        raise ConfigError("--paired compares names of files: give two folders, or --pairs")
    if encoder is not None:
        known = _with_texts(known, encoder, source, captions)
    real, generated = (
        _features(side, kind, source, encoder, pairs)
        for side, kind in zip(sides, KINDS, strict=True)
    )
    return Prepared(real, generated, pairs, known)


def _side(source: Source, kind: Kind, encoder: GmailEncoder | None) -> Artifact:
    """Return features or images, imported where files were given."""
    path = source.real if kind == "real" else source.generated
    if check_side(path, encoder is not None) == "files":
        return import_images(path, source.home / f"{kind}-images", kind)
    return load(path)


def _features(
    side: Artifact, kind: Kind, source: Source, encoder: GmailEncoder | None, pairs: Pairs | None
) -> Artifact:
    """Return features of the images that are looked at."""
    if side.kind == "features":
        return side
    assert encoder is not None
    every = ImageStore(side).ids
    if pairs is None:
        chosen = _some(every, source, kind)
    else:
        chosen = list(dict.fromkeys(pair[KINDS.index(kind)] for pair in pairs))
    ids = None if len(chosen) == len(every) else chosen
    return extract_images(side, encoder, Route.FROZEN, source.home / kind, ids=ids)


def _some(rows: Sequence[T], source: Source, what: str) -> list[T]:
    """Draw the rows that are looked at, in their order."""
    return [rows[row] for row in sample_rows(len(rows), source.most, source.seed, what).tolist()]


def _generators(side: Artifact) -> dict[str, str]:
    """Return what made each image by the index, where there are several."""
    if side.kind != "images":
        return {}
    try:
        table = pq.read_table(side.path(INDEX), columns=["id", "generator"])
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{side.folder} is damaged: make it again") from error
    names, makers = (table.column(name).to_pylist() for name in ("id", "generator"))
    return dict(zip(names, makers, strict=True)) if len(set(makers)) > 1 else {}


def _with_texts(
    known: Known, encoder: GmailEncoder, source: Source, captions: Sequence[str] | None
) -> Known:
    """Add text features: the captions of pairs, or else a prompt for every class."""
    out = source.home / "texts"
    try:
        if source.pairs is not None:
            texts = extract_texts(source.pairs, encoder, out)
            return replace(known, texts=texts, captions=captions)
        names = sorted({*known.real_classes.values(), *known.generated_classes.values()})
        if not names:
            return known
        prompts = _class_captions(names, source.home / "class-prompts")
        return replace(known, texts=extract_texts(prompts, encoder, out))
    except ModelError as error:  # an encoder of images alone, such as SynCLR
        say(f"no text recall: {error}")
        return known


def _class_captions(names: Sequence[str], out: Path) -> Artifact:
    """Write a prompt for each class; the caption's id is the class."""
    draft = begin(out, "captions", {"format": "classes", "names": list(names)})
    if draft.complete is not None:
        return draft.complete
    rows = [{"caption_id": name, "text": class_prompt(name), "image_id": name} for name in names]
    write_jsonl(draft.path(CAPTIONS), rows)
    return draft.finish({"captions": len(names), "images": len(names)})
