"""From what lies on a disk to features of both sides: folders, zips, images or features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import try_to_load_from_cache

from gmail_align.artifacts import MANIFEST, Artifact, begin, fingerprint, load, write_jsonl
from gmail_align.data.captions import CAPTIONS
from gmail_align.data.images import INDEX, ImageStore
from gmail_align.data.pairs import read_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, ConfigError, DataError, ModelError
from gmail_align.features.run import extract_images, extract_texts
from gmail_align.gap.config import GapConfig
from gmail_align.gap.sides import Known, sample_rows
from gmail_align.importing.captions_beside_images import captions_beside
from gmail_align.importing.class_folders import (
    Kind,
    class_prompt,
    import_images,
    labels_of,
    pairs_by_name,
    source_paths,
)
from gmail_align.progress import say

KINDS: Final[tuple[Kind, Kind]] = ("real", "generated")
DEFAULTS: Final = (
    *("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32"),
    "openai/clip-vit-large-patch14",
)
"""Encoders that are taken where none is named and one of them is there."""
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
            f"{source} holds images and no CLIP is on this machine to compare them: name an "
            f"--encoder, a folder or {DEFAULTS[0]} (downloaded once, 600 MB); "
            "tabletop is shipped, and knows drawn scenes only"
        )
    return kind


def encoder_at_hand() -> str | None:
    """Return the first of :data:`DEFAULTS` that Hugging Face's cache on this machine holds."""
    for name in DEFAULTS:
        weights = ("model.safetensors", "pytorch_model.bin")
        has_config, *held = (
            isinstance(try_to_load_from_cache(name, file), str)
            for file in ("config.json", *weights)
        )
        if has_config and any(held):
            return name
    return None


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
    chosen = [
        None if side.kind == "features" else _chosen(side, kind, source, pairs)
        for side, kind in zip(sides, KINDS, strict=True)
    ]
    if encoder is not None:
        said = [{}, {}] if captions else _said(source, paths, chosen, pairs)
        known = _with_texts(known, encoder, source, captions, said)
    real, generated = (
        _features(side, kind, source, encoder, ids)
        for side, kind, ids in zip(sides, KINDS, chosen, strict=True)
    )
    return Prepared(real, generated, pairs, known)


def _side(source: Source, kind: Kind, encoder: GmailEncoder | None) -> Artifact:
    """Return features or images, imported where files were given."""
    path = source.real if kind == "real" else source.generated
    if check_side(path, encoder is not None) == "files":
        return import_images(path, source.home / f"{kind}-images", kind)
    return load(path)


def _chosen(side: Artifact, kind: Kind, source: Source, pairs: Pairs | None) -> list[str]:
    """Return the images of a side that are looked at."""
    if pairs is None:
        return _some(ImageStore(side).ids, source, kind)
    return list(dict.fromkeys(pair[KINDS.index(kind)] for pair in pairs))


def _features(
    side: Artifact, kind: Kind, source: Source, encoder: GmailEncoder | None, ids: list[str] | None
) -> Artifact:
    """Return features of the images that are looked at."""
    if ids is None:
        return side
    assert encoder is not None
    every = len(ids) == len(ImageStore(side).ids)
    wanted = None if every else ids
    return extract_images(side, encoder, Route.FROZEN, source.home / kind, ids=wanted)


def _said(
    source: Source,
    paths: Sequence[dict[str, str] | None],
    chosen: Sequence[list[str] | None],
    pairs: Pairs | None,
) -> list[dict[str, str]]:
    """Return image id -> caption of each side, from what lies beside the images.

    A pair shares its caption where one side alone says it. A side of which only some images have
    one says nothing.
    """
    found: list[dict[str, str]] = []
    for folder, own, ids in zip((source.real, source.generated), paths, chosen, strict=True):
        told = {} if own is None or ids is None else captions_beside(folder, [own[i] for i in ids])
        found.append({i: told[own[i]] for i in ids or () if own and own[i] in told})
    for first, second in pairs or ():
        text = found[0].get(first) or found[1].get(second)
        if text is not None:
            found[0].setdefault(first, text)
            found[1].setdefault(second, text)
    for kind, own, ids in zip(KINDS, found, chosen, strict=True):
        if own and ids and len(own) < len(ids):
            say(f"no text recall: {len(ids) - len(own)} of {len(ids)} {kind} images lack a caption")
            own.clear()
    return found


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
    known: Known,
    encoder: GmailEncoder,
    source: Source,
    captions: Sequence[str] | None,
    said: Sequence[dict[str, str]],
) -> Known:
    """Add text features: the captions of pairs or images, or else a prompt for every class."""
    out = source.home / "texts"
    try:
        if source.pairs is not None:
            texts = extract_texts(source.pairs, encoder, out, route=Route.FROZEN)
            return replace(known, texts=texts, captions=captions)
        if any(said):
            ids = [{image: fingerprint(text) for image, text in own.items()} for own in said]
            lines = {fingerprint(text): text for own in said for text in own.values()}
            own_captions = _captions(lines, "beside", source.home / "captions")
            texts = extract_texts(own_captions, encoder, out, route=Route.FROZEN)
            return replace(known, texts=texts, real_texts=ids[0], generated_texts=ids[1])
        names = sorted({*known.real_classes.values(), *known.generated_classes.values()})
        if not names:
            return known
        prompts = {name: class_prompt(name) for name in names}
        classes = _captions(prompts, "classes", source.home / "class-prompts")
        return replace(known, texts=extract_texts(classes, encoder, out, route=Route.FROZEN))
    except ModelError as error:  # an encoder of images alone, such as SynCLR
        say(f"no text recall: {error}")
        return known


def _captions(lines: Mapping[str, str], what: str, out: Path) -> Artifact:
    """Write caption id -> text as captions; the prompt of a class has the class as its id."""
    draft = begin(out, "captions", {"format": what, "names": list(lines)})
    if draft.complete is not None:
        return draft.complete
    rows = [{"caption_id": name, "text": text, "image_id": name} for name, text in lines.items()]
    write_jsonl(draft.path(CAPTIONS), rows)
    return draft.finish({"captions": len(rows), "images": len(rows)})
