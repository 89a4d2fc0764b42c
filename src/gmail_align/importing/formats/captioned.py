"""Captioned sets: Karpathy, Flickr30k, Conceptual Captions, ShareGPT4V, Urban-1k."""

from __future__ import annotations

import posixpath
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from gmail_align.data.captions import name_id
from gmail_align.data.decode import SUFFIXES
from gmail_align.data.protocols import Protocol, require_dataset
from gmail_align.errors import DataError
from gmail_align.importing.formats.shards import shard_source
from gmail_align.importing.formats.streams import file_digest, json_items, text_lines
from gmail_align.importing.members import Members, base_name, open_several, suffix
from gmail_align.importing.source import Images, Places, Source, image_places
from gmail_align.importing.staging import Staging, add, located, refuse_faults

SHAREGPT4V_TEST: Final = 1000
"""The first so many entries of ShareGPT4V are its test split, as in Long-CLIP."""


def list_karpathy(
    staging: Staging, annotations: Path, members: Members | None, splits: Collection[str]
) -> tuple[str, str]:
    """List a json of Karpathy's layout (``dataset_coco.json``, ``_flickr30k``, ``_flickr8k``).

    COCO's images keep their COCO id, others get the id of their file's name; a caption's id is its
    ``sentid``.

    Args:
        staging: Gets the images and captions.
        annotations: The json.
        members: Where the images are; None lists captions alone.
        splits: Splits to keep (``train``, ``restval``, ``val``, ``test``); empty keeps all.

    Returns:
        The sha256 of the file, and the ``dataset`` it names.

    Raises:
        DataError: the file is missing or of another kind, or has none of the splits.
    """
    digest, seen = file_digest(annotations), set()
    for number, entry in enumerate(json_items(annotations, "images")):
        try:
            name, split, sentences = entry["filename"], entry["split"], entry["sentences"]
            seen.add(split)
            if splits and split not in splits:
                continue
            image_id = str(entry["cocoid"]) if "cocoid" in entry else name_id(name)
            place = posixpath.join(entry.get("filepath", ""), name)
            rows = [(str(one["sentid"]), one["raw"]) for one in sentences]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{annotations}: entry {number} of 'images' is not of Karpathy's layout ({error!r})"
            ) from error
        add(staging, image_id, located(members, place, name), rows)
    if not seen:
        raise DataError(f"{annotations} is json but lists no 'images': give dataset_*.json")
    if missing := sorted(set(splits) - seen):
        raise DataError(f"{annotations} has no split {missing[0]!r}: use {', '.join(sorted(seen))}")
    return digest, _dataset_of(annotations)


def _dataset_of(path: Path) -> str:
    stem = path.name.partition(".")[0].removeprefix("dataset_")
    return stem if stem in ("coco", "flickr30k", "flickr8k") else "karpathy"


def list_tokens(staging: Staging, tokens: Path, members: Members | None) -> str:
    """List Flickr30k's or Flickr8k's token file: ``name.jpg#n``, a tab, the caption.

    Returns:
        The sha256 of the file.

    Raises:
        DataError: the file is missing or no line of it has that form.
    """
    count = 0
    for number, line in text_lines(tokens):
        head, tab, text = line.partition("\t") if isinstance(line, str) else ("", "", "")
        name, sign, which = head.rpartition("#")
        if not (tab and sign and which.isdecimal()):
            if line:
                _refuse_line(staging, number, line, "is not of the form name.jpg#n, tab, caption")
            continue
        count += 1
        add(staging, name_id(name), located(members, name), [(f"{name_id(name)}-{which}", text)])
    _refuse_none(count, tokens, "lines of the form name.jpg#n, tab, caption")
    return file_digest(tokens)


def list_conceptual(staging: Staging, table: Path, members: Members | None) -> str:
    """List the TSV of CC3M (caption, url) or CC12M (url, caption).

    A line's number, from 0, is its image's id. Images are looked for as ``{number}``, with or
    without leading zeros and a suffix, or as ``{number}_{crc32 of the url}``.

    Returns:
        The sha256 of the file.

    Raises:
        DataError: the file is missing or no line of it has a caption and a url.
    """
    count = 0
    for number, line in text_lines(table):
        parts = line.split("\t") if isinstance(line, str) else []
        if len(parts) == 2 and _is_url(parts[0]):
            parts.reverse()
        if len(parts) != 2 or not _is_url(parts[1]):
            if line:
                _refuse_line(staging, number, line, "is no caption and url with a tab between")
            continue
        count += 1
        text, url = parts
        name = f"{number - 1:09d}"
        add(staging, name, _conceptual_place(members, number - 1, url), [(f"{name}-0", text)])
    _refuse_none(count, table, "captions and urls with a tab between")
    return file_digest(table)


def _conceptual_place(members: Members | None, number: int, url: str) -> str:
    names = (f"{number}", f"{number:08d}", f"{number:09d}")
    hashed = f"{number}_{zlib.crc32(url.encode('utf-8', 'replace')) & 0xFFFFFFFF}"
    wanted = [f"{name}.jpg" for name in names] + [hashed, names[0]]
    return located(members, *wanted)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def list_sharegpt4v(
    staging: Staging, annotations: Path, members: Members | None, split: str
) -> str:
    """List ShareGPT4V's captions: the second turn of each entry's conversation.

    Args:
        staging: Gets the images and captions.
        annotations: The json, a list of ``{image, conversations}``.
        members: Where the images are; None lists captions alone.
        split: ``test`` is the first thousand entries, ``train`` the others; ``all``.

    Returns:
        The sha256 of the file.

    Raises:
        DataError: the file is missing, of another kind, or the split is another.
    """
    if split not in ("test", "train", "all"):
        raise DataError(f"ShareGPT4V has no split {split!r}: use test, train or all")
    count = 0
    for number, entry in enumerate(json_items(annotations)):
        count += 1
        if split == "test" and number >= SHAREGPT4V_TEST:
            break
        if split == "train" and number < SHAREGPT4V_TEST:
            continue
        try:
            name, text = entry["image"], entry["conversations"][1]["value"]
            image_id = name_id(name)
        except (KeyError, TypeError, IndexError, AttributeError):
            staging.refuse("captions", f"entry-{number}", "has no image and second turn")
            continue
        add(staging, image_id, located(members, name), [(f"{image_id}-{number}", text)])
    _refuse_none(count, annotations, "entries: give ShareGPT4V's share-captioner_*.json")
    return file_digest(annotations)


def list_beside(staging: Staging, members: Members) -> None:
    """List images whose captions lie beside them, as Urban-1k's do.

    The captions of ``x/image/7.jpg`` are the lines of ``x/caption/7.txt`` or ``x/image/7.txt``.
    """
    names = [name for name, fault in members.listing() if not fault]
    texts = {_beside(name): name for name in names if suffix(name) == "txt"}
    refuse_faults(staging, members)
    taken = set()
    for name in names:
        if suffix(name) not in SUFFIXES or _beside(name) not in texts:
            continue
        text = texts[_beside(name)]
        taken.add(text)
        image_id = base_name(name)
        add(staging, name_id(f"{image_id}.jpg"), name, _lines_of(members, text, image_id))
    for text in sorted(set(texts.values()) - taken):
        staging.refuse("captions", base_name(text), f"{text} has no image beside it")


def _beside(name: str) -> str:
    stem = posixpath.splitext(name)[0]
    folder, _, base = stem.rpartition("/")
    outer, _, inner = folder.rpartition("/")
    return f"{outer if inner in ('image', 'images', 'caption', 'captions') else folder}/{base}"


def _lines_of(members: Members, name: str, stem: str) -> list[tuple[str, str]]:
    try:
        lines = members.read(name).decode("utf-8-sig").splitlines()
    except (DataError, UnicodeDecodeError):
        lines = [""]
    found = [line for line in lines if line.strip()] or [""]
    return [(f"{name_id(stem + '.jpg')}-{k}", line) for k, line in enumerate(found)]


def _refuse_line(staging: Staging, number: int, line: str | DataError, reason: str) -> None:
    staging.refuse(
        "captions", f"line-{number}", str(line) if isinstance(line, DataError) else reason
    )


def _refuse_none(count: int, path: Path, what: str) -> None:
    if not count:
        raise DataError(f"{path} holds no {what}")


def karpathy(
    annotations: Annotated[
        Path,
        Field(description="dataset_coco.json, dataset_flickr30k.json, ..."),
    ],
    images: Images = (),
    split: Annotated[
        Sequence[str],
        Field(description="train, restval, val or test; may be repeated; by default all."),
    ] = (),
    protocol: Protocol | None = None,
) -> Source:
    """Import Karpathy's splits of COCO, Flickr30k or Flickr8k."""
    require_dataset(protocol, "coco", "flickr30k")
    splits = list(split) or ([protocol.split] if protocol else [])
    staging, members = Staging(), image_places(images)
    digest, dataset = list_karpathy(staging, annotations, members, splits)
    name = ",".join(sorted(splits)) or "all"
    config = {"format": "karpathy", "dataset": dataset, "split": name}
    return Source(config=config, inputs={"annotations": digest}, staging=staging, members=members)


def flickr30k(
    tokens: Annotated[
        Path, Field(description="results_20130124.token, or a file of that form of Flickr8k.")
    ],
    images: Images = (),
    protocol: Protocol | None = None,
) -> Source:
    """Import Flickr30k's token file with all its images (the protocol flickr30k_31k)."""
    require_dataset(protocol, "flickr30k")
    staging, members = Staging(), image_places(images)
    digest = list_tokens(staging, tokens, members)
    config = {"format": "flickr30k", "split": "all"}
    return Source(config=config, inputs={"annotations": digest}, staging=staging, members=members)


def cc(
    source: Annotated[
        Path, Field(description="TSV of captions and urls, or img2dataset's shards.")
    ],
    images: Images = (),
) -> Source:
    """Import CC3M or CC12M; the images of a TSV are files named by their line, from 0."""
    if source.is_dir() or source.suffix == ".tar":
        if images:
            raise DataError("shards of img2dataset hold their images: leave out --images")
        return shard_source([source], "cc")
    staging, members = Staging(), image_places(images)
    digest = list_conceptual(staging, source, members)
    config = {"format": "cc", "split": source.name.partition(".")[0]}
    return Source(config=config, inputs={"annotations": digest}, staging=staging, members=members)


def sharegpt4v(
    annotations: Annotated[Path, Field(description="share-captioner_*.json of ShareGPT4V.")],
    images: Images = (),
    split: Annotated[
        str | None, Field(description="test (the first 1,000), train (the others) or all.")
    ] = None,
    protocol: Protocol | None = None,
) -> Source:
    """Import ShareGPT4V's long captions."""
    require_dataset(protocol, "sharegpt4v")
    name = split or (protocol.split if protocol else "all")
    staging, members = Staging(), image_places(images)
    digest = list_sharegpt4v(staging, annotations, members, name)
    config = {"format": "sharegpt4v", "split": name}
    return Source(config=config, inputs={"annotations": digest}, staging=staging, members=members)


def urban1k(source: Places, protocol: Protocol | None = None) -> Source:
    """Import Urban-1k, or any images with .txt captions of the same names beside them."""
    require_dataset(protocol, "urban1k")
    staging, members = Staging(), open_several(source)
    list_beside(staging, members)
    config = {"format": "urban1k", "split": "test"}
    inputs = {"listed": staging.fingerprint()}
    return Source(config=config, inputs=inputs, staging=staging, members=members)
