"""From what lies on a disk to features of both sides: folders, zips, images or features."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeVar

import pyarrow.parquet as pq
from huggingface_hub import try_to_load_from_cache

from gmail_align.artifacts import MANIFEST, Artifact, begin, fingerprint, load
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.ids import key_id
from gmail_align.data.images import INDEX, ImageStore
from gmail_align.data.labels import open_labels
from gmail_align.data.pairs import read_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import ArtifactError, ConfigError, DataError, ModelError, damage_explained
from gmail_align.features.run import extract_images, extract_texts
from gmail_align.features.store import Features, open_features
from gmail_align.gap.config import GapConfig, RowLabels
from gmail_align.gap.feature_sets import Annotations, class_texts, sample_rows
from gmail_align.importing.formats.image_folders import common_folder, image_folder
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.splits import split_of
from gmail_align.importing.write import write_import
from gmail_align.metrics.ranks import require_pairs
from gmail_align.progress import say

Kind = Literal["real", "generated"]
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

    real: Path | Artifact
    generated: Path | Artifact
    pairs: Sequence[tuple[str, str]] | None
    known: Annotations
    real_images: Artifact | None = None
    """The images of the real side; None where features were given."""
    generated_images: Artifact | None = None
    captions: Sequence[Mapping[str, str]] = ({}, {})
    """Image id -> caption of both sides, as far as known."""


def kind_of(source: Path, encoded: bool) -> str:
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


def cached_encoder() -> str | None:
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


@dataclass(frozen=True)
class _ImageSet:
    """One side of the gap: features, or images with what lies beside them.

    Attributes:
        artifact: The features or images.
        paths: Image id -> its path in the folder or archive; None for an artifact.
        captions: Image id -> its first caption.
    """

    artifact: Artifact
    paths: Mapping[str, str] | None = None
    captions: Mapping[str, str] = field(default_factory=dict)


def prepare(source: Source, encoder: GmailEncoder | None) -> Prepared:
    """Import and extract what is not features yet, and read pairs, classes and texts.

    Args:
        source: The two sides.
        encoder: Embeds images and texts; None where features are given.

    Raises:
        UserError: a side cannot be used, or nothing can be paired.
    """
    sets = _image_set(source, "real", encoder), _image_set(source, "generated", encoder)
    known, pairs, captions = Annotations(generators=_generators(sets[1].artifact)), None, None
    texts: list[dict[str, str]] = [{}, {}]
    if source.pairs is not None:
        rows = _some(read_pairs(source.pairs), source, "pairs")
        pairs = [(row.real_image_id, row.generated_image_id) for row in rows]
        captions = [row.caption_id for row in rows]
        for row in reversed(rows):  # the first caption of an image counts
            texts[0][row.real_image_id] = texts[1][row.generated_image_id] = row.text
    if sets[0].paths is not None and sets[1].paths is not None:
        known = Annotations(*labels_of(sets[0].paths, sets[1].paths))
        if source.by_name:
            pairs = _some(pairs_by_name(sets[0].paths, sets[1].paths), source, "pairs")
    elif source.by_name:
        raise ConfigError("--paired compares names of files: give two folders, or --pairs")
    chosen = [
        None if one.artifact.kind == "features" else _chosen(one.artifact, kind, source, pairs)
        for one, kind in zip(sets, KINDS, strict=True)
    ]
    if encoder is not None:
        texts = texts if captions else _captions_of(sets, chosen, pairs)
        known = _with_texts(known, encoder, source, captions, texts)
    real, generated = (
        _features(one.artifact, kind, source, encoder, ids)
        for one, kind, ids in zip(sets, KINDS, chosen, strict=True)
    )
    first, second = (one.artifact if one.artifact.kind == "images" else None for one in sets)
    return Prepared(real, generated, pairs, known, first, second, texts)


def prepare_files(real: Path, generated: Path, labels: RowLabels, *, paired: bool) -> Prepared:
    """Read what is known of the rows of two ``.npy`` files.

    Args:
        real: Features of real images.
        generated: Features of generated images.
        labels: Files with a label for each row.
        paired: Whether row n of one file belongs to row n of the other.

    Raises:
        DataError: a file cannot be read, or does not have a label for each row, or a text for each
            pair or class.
        UserError: the files do not pair up.
    """
    first, second = open_features(real), open_features(generated)
    pairs = None
    if paired:
        require_pairs(real=first.array, generated=second.array)
        pairs = [(name, name) for name in first.ids]
    known = Annotations(
        _row_labels(labels.real_classes, first, "class"),
        _row_labels(labels.generated_classes, second, "class"),
        _row_labels(labels.generators, second, "generator"),
    )
    if labels.text_features is not None:
        texts = open_features(labels.text_features)
        known = class_texts(known, texts, None if pairs is None else len(pairs))
    return Prepared(real, generated, pairs, known)


def _row_labels(path: Path | None, rows: Features, what: str) -> dict[str, str]:
    if path is None:
        return {}
    return dict(zip(rows.ids, open_labels(path).of(rows.ids, what), strict=True))


def _image_set(source: Source, kind: Kind, encoder: GmailEncoder | None) -> _ImageSet:
    """Return features or images, imported where files were given."""
    path = source.real if kind == "real" else source.generated
    if kind_of(path, encoder is not None) != "files":
        return _ImageSet(load(path))
    listed = image_folder(path, kind)
    images = write_import(listed, source.home / f"{kind}-images", ImportOptions())["images"]
    captions: dict[str, str] = {}
    for caption in listed.staging.captions():
        captions.setdefault(caption.image_id, caption.text)
    paths = {image.image_id: image.place for image in listed.staging.images()}
    return _ImageSet(images, paths, captions)


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


def _captions_of(
    sets: Sequence[_ImageSet], chosen: Sequence[list[str] | None], pairs: Pairs | None
) -> list[dict[str, str]]:
    """Return image id -> caption of each side, from what lies beside the images.

    A pair shares its caption where only one of its images has one. A side whose images do not all
    have a caption counts as a side without captions.
    """
    texts = [
        {image: one.captions[image] for image in ids or () if image in one.captions}
        for one, ids in zip(sets, chosen, strict=True)
    ]
    for first, second in pairs or ():
        text = texts[0].get(first) or texts[1].get(second)
        if text is not None:
            texts[0].setdefault(first, text)
            texts[1].setdefault(second, text)
    for kind, own, ids in zip(KINDS, texts, chosen, strict=True):
        if own and ids and len(own) < len(ids):
            say(f"no text recall: {len(ids) - len(own)} of {len(ids)} {kind} images lack a caption")
            own.clear()
    return texts


def pairs_by_name(real: Mapping[str, str], generated: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pair images whose paths are equal up to their suffixes.

    Raises:
        DataError: no two are, or a name stands for two images.
    """
    first, second = (_by_stem(paths) for paths in (real, generated))
    names = [name for name in first if name in second]
    if not names:
        raise DataError(
            "no generated image has the name of a real one: give both the same name to pair them, "
            "or leave out --paired"
        )
    return [(first[name], second[name]) for name in names]


def _by_stem(paths: Mapping[str, str]) -> dict[str, str]:
    """Return path without suffix -> image id."""
    start = len(common_folder(list(paths.values())))
    ids: dict[str, str] = {}
    for name, path in paths.items():
        stem = str(PurePosixPath(path[start:]).with_suffix(""))
        if ids.setdefault(stem, name) != name:
            raise DataError(f"two images are named {stem}: names must be unique to pair them")
    return ids


def labels_of(
    real: Mapping[str, str], generated: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Read classes and generators off the subfolders, by image id.

    The innermost folder is an image's class where both sides have folders of the same names. What
    stands above it on the generated side names the generator. A split is neither.

    Returns:
        Classes of the real images, classes of the generated ones, generators of the generated
        ones; empty where the folders do not say.
    """
    above = [{name: _folders(path) for name, path in paths.items()} for paths in (real, generated)]
    inner = [{parts[-1] for parts in side.values() if parts} for side in above]
    shared = inner[0] & inner[1]
    by_class = len(shared) > 1 and all(parts for side in above for parts in side.values())
    cut = -1 if by_class else None
    generators = {name: "/".join(parts[:cut]) for name, parts in above[1].items()}
    first, second = (
        {name: parts[-1] for name, parts in side.items()} if by_class else {} for side in above
    )
    return first, second, generators if len(set(generators.values())) > 1 else {}


def _folders(path: str) -> list[str]:
    return [part for part in PurePosixPath(path).parent.parts if not split_of(part)]


def class_prompt(name: str) -> str:
    """Return the caption that a class folder stands for: ``0_fire_truck`` is a fire truck."""
    words = re.sub(r"^\d+[_\-. ]+", "", name).replace("_", " ").replace("-", " ").strip()
    return f"a photo of a {words or name}."


def _some(rows: Sequence[T], source: Source, what: str) -> list[T]:
    """Draw the rows that are looked at, in their order."""
    return [rows[row] for row in sample_rows(len(rows), source.most, source.seed, what).tolist()]


def _generators(side: Artifact) -> dict[str, str]:
    """Return what made each image by the index, where there are several."""
    if side.kind != "images":
        return {}
    with damage_explained(side.path(INDEX), ArtifactError, f"make {side.folder} again"):
        table = pq.read_table(side.path(INDEX), columns=["id", "generator"])
    names, makers = (table.column(name).to_pylist() for name in ("id", "generator"))
    return dict(zip(names, makers, strict=True)) if len(set(makers)) > 1 else {}


def _with_texts(
    known: Annotations,
    encoder: GmailEncoder,
    source: Source,
    captions: Sequence[str] | None,
    own_texts: Sequence[dict[str, str]],
) -> Annotations:
    """Add text features: the captions of pairs or images, or else a prompt for every class."""
    out = source.home / "texts"
    try:
        if source.pairs is not None:
            texts = _frozen_texts(source.pairs, encoder, out)
            return replace(known, texts=texts, captions=captions)
        if any(own_texts):
            ids = [{image: fingerprint(text) for image, text in own.items()} for own in own_texts]
            lines = {fingerprint(text): text for own in own_texts for text in own.values()}
            own_captions = _write_texts(lines, "beside", source.home / "captions")
            texts = _frozen_texts(own_captions, encoder, out)
            return replace(known, texts=texts, real_texts=ids[0], generated_texts=ids[1])
        names = sorted({*known.real_classes.values(), *known.generated_classes.values()})
        if not names:
            return known
        prompts = {key_id(name): class_prompt(name) for name in names}
        classes = _write_texts(prompts, "classes", source.home / "class-prompts")
        return replace(known, texts=_frozen_texts(classes, encoder, out))
    except ModelError as error:  # an encoder of images alone, such as SynCLR
        say(f"no text recall: {error}")
        return known


def _frozen_texts(captions: Artifact, encoder: GmailEncoder, out: Path) -> Features:
    """Extract texts by the route of the images, which an adapted text tower would not fit."""
    return open_features(extract_texts(captions, encoder, out, route=Route.FROZEN))


def _write_texts(texts: Mapping[str, str], what: str, out: Path) -> Artifact:
    """Write caption id -> text as captions, each of an image of the same id."""
    draft = begin(out, "captions", {"format": what, "names": list(texts)})
    if draft.complete is not None:
        return draft.complete
    count = write_captions(draft, (Caption(name, text, name) for name, text in texts.items()))
    return draft.finish({"captions": count, "images": count})
