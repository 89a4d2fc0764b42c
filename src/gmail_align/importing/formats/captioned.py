"""Sets with a file of captions: Karpathy, Flickr30k, Conceptual Captions, ShareGPT4V."""

from __future__ import annotations

import os
import posixpath
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from gmail_align.data.ids import numbered
from gmail_align.data.protocols import Protocol, require_dataset
from gmail_align.errors import DataError
from gmail_align.importing.formats.shards import shard_source
from gmail_align.importing.rows import table_rows
from gmail_align.importing.source import Images, Source, image_places
from gmail_align.importing.splits import SplitChoice
from gmail_align.importing.staging import Staging
from gmail_align.importing.streams import file_digest, json_items, text_lines
from gmail_align.remote import is_folder, url_of

SHAREGPT4V_TEST: Final = 1000
"""The first so many entries of ShareGPT4V are its test split, as in Long-CLIP."""

_RESULTS: Final = ("image_name", "comment")
"""Columns of the copy of Flickr30k's captions that Kaggle distributes (``results.csv``)."""


def karpathy(
    annotations: Annotated[
        Path, Field(description="dataset_coco.json, dataset_flickr30k.json or the like.")
    ],
    images: Images = (),
    split: Annotated[
        Sequence[str],
        Field(description="train, restval, val or test; may be repeated; by default all."),
    ] = (),
    protocol: Protocol | None = None,
) -> Source:
    """Import Karpathy's splits of COCO, Flickr30k or Flickr8k.

    COCO's images keep their COCO id, others get the id of their file's name; a caption's id is its
    ``sentid``.
    """
    require_dataset(protocol, "coco", "flickr30k")
    splits = set(split) or ({protocol.split} if protocol else set())
    staging, members = Staging(), image_places(images)
    digest, seen = file_digest(annotations), set()
    for number, entry in enumerate(json_items(annotations, "images")):
        try:
            name, own_split, sentences = entry["filename"], str(entry["split"]), entry["sentences"]
            seen.add(own_split)
            if splits and own_split not in splits:
                continue
            place = staging.locate(members, posixpath.join(entry.get("filepath", ""), name), name)
            own = entry.get("cocoid")
            image_id = staging.image_id(name, place) if own in (None, "") else str(own)
            captions = [(str(one["sentid"]), one["raw"]) for one in sentences]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{annotations}: entry {number} of 'images' is not of Karpathy's layout ({error!r})"
            ) from error
        staging.add(image_id, place, captions)
    if not seen:
        raise DataError(f"{annotations} is json but lists no 'images': give dataset_*.json")
    if missing := sorted(splits - seen):
        raise DataError(f"{annotations} has no split {missing[0]!r}: use {', '.join(sorted(seen))}")
    stem = annotations.name.partition(".")[0].removeprefix("dataset_")
    dataset = stem if stem in ("coco", "flickr30k", "flickr8k") else "karpathy"
    config = {
        "format": "karpathy",
        "dataset": dataset,
        "split": ",".join(sorted(splits)) or "all",
    }
    return Source(config=config, inputs={"annotations": digest}, staging=staging, members=members)


def flickr30k(
    tokens: Annotated[
        Path,
        Field(
            description="results_20130124.token, or a file of that form; or Kaggle's results.csv."
        ),
    ],
    images: Images = (),
    protocol: Protocol | None = None,
) -> Source:
    """Import Flickr30k's token file with all its images (the protocol flickr30k_31k).

    A line is ``name.jpg#n``, a tab and the caption.
    """
    require_dataset(protocol, "flickr30k")
    staging, members = Staging(), image_places(images)
    count = 0
    for number, row in _token_rows(tokens):
        if isinstance(row, DataError):
            staging.refuse("captions", f"line-{number}", str(row))
            continue
        count += 1
        name, which, text = row
        place = staging.locate(members, name)
        image_id = staging.image_id(name, place)
        staging.add(image_id, place, [(f"{image_id}-{which}", text)])
    _refuse_none(count, tokens, "lines of the form name.jpg#n, tab, caption")
    return Source(
        config={"format": "flickr30k", "split": "all"},
        inputs={"annotations": file_digest(tokens)},
        staging=staging,
        members=members,
    )


def _token_rows(path: Path) -> Any:
    """Yield line number and (image name, number of the caption, caption), or why there is none."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        for number, row in table_rows(path, _RESULTS):
            if isinstance(row, DataError):
                yield number, row
            else:
                name, text = (str(row[column]).strip() for column in _RESULTS)
                yield number, (name, str(row.get("comment_number", number)).strip(), text)
        return
    for number, line in text_lines(path):
        head, tab, text = line.partition("\t") if isinstance(line, str) else ("", "", "")
        name, _, which = head.rpartition("#")
        if name and tab and which.isdecimal():
            yield number, (name, which, text)
        elif isinstance(line, DataError):
            yield number, line
        elif line.strip():
            yield number, DataError("is not of the form name.jpg#n, tab, caption")


def cc(
    source: Annotated[
        Path, Field(description="TSV of captions and urls, or img2dataset's shards.")
    ],
    images: Images = (),
    split: SplitChoice = None,
) -> Source:
    """Import CC3M (caption, url) or CC12M (url, caption); a TSV's images are named by their line.

    A line's number, from 0, is its image's id. Images are looked for as ``{number}``, with or
    without leading zeros and a suffix, or as ``{number}_{crc32 of the url}``.
    """
    url = url_of(source)
    if os.path.isdir(source) or source.suffix == ".tar" or (url and is_folder(url)):
        if images:
            raise DataError("shards of img2dataset hold their images: leave out --images")
        return shard_source([source], "cc", split=split)
    staging, members = Staging(), image_places(images)
    count = 0
    for number, line in text_lines(source):
        parts = line.split("\t") if isinstance(line, str) else []
        if len(parts) == 2 and _is_url(parts[0]):
            parts.reverse()
        if isinstance(line, DataError) or len(parts) != 2 or not _is_url(parts[1]):
            if line:
                reason = line if isinstance(line, DataError) else "is not a caption, tab, url"
                staging.refuse("captions", f"line-{number}", str(reason))
            continue
        count += 1
        text, url = parts
        image_id = f"{number - 1:09d}"
        place = staging.locate(members, *_conceptual_names(number - 1, url))
        staging.add(image_id, place, [(numbered(image_id, 0), text)])
    _refuse_none(count, source, "captions and urls with a tab between")
    return Source(
        config={"format": "cc", "split": source.name.partition(".")[0]},
        inputs={"annotations": file_digest(source)},
        staging=staging,
        members=members,
    )


def _conceptual_names(number: int, url: str) -> list[str]:
    names = (f"{number}", f"{number:08d}", f"{number:09d}")
    hashed = f"{number}_{zlib.crc32(url.encode('utf-8', 'replace')) & 0xFFFFFFFF}"
    return [*(f"{name}.jpg" for name in names), hashed, names[0]]


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def sharegpt4v(
    annotations: Annotated[Path, Field(description="share-captioner_*.json of ShareGPT4V.")],
    images: Images = (),
    split: Annotated[
        str | None, Field(description="test (the first 1,000), train (the others) or all.")
    ] = None,
    protocol: Protocol | None = None,
) -> Source:
    """Import ShareGPT4V's long captions: the second turn of each entry's conversation."""
    require_dataset(protocol, "sharegpt4v")
    split = split or (protocol.split if protocol else "all")
    if split not in ("test", "train", "all"):
        raise DataError(f"ShareGPT4V does not have a split {split!r}: use test, train or all")
    staging, members = Staging(), image_places(images)
    count = 0
    for number, entry in enumerate(json_items(annotations)):
        count += 1
        if split == "test" and number >= SHAREGPT4V_TEST:
            break
        if split == "train" and number < SHAREGPT4V_TEST:
            continue
        try:
            name, turn = entry["image"], entry["conversations"][1]
            text = turn["value"]
            if turn.get("from") in ("human", "user"):
                text = DataError("is a question: the second turn is not the model's")
            place = staging.locate(members, name)
            image_id = staging.image_id(name, place)
        except (KeyError, TypeError, IndexError, AttributeError):
            staging.refuse("captions", f"entry-{number}", "does not have an image and second turn")
            continue
        staging.add(image_id, place, [(numbered(image_id, number), text)])
    _refuse_none(count, annotations, "entries: give ShareGPT4V's share-captioner_*.json")
    return Source(
        config={"format": "sharegpt4v", "split": split},
        inputs={"annotations": file_digest(annotations)},
        staging=staging,
        members=members,
    )


def _refuse_none(count: int, path: Path, what: str) -> None:
    if not count:
        raise DataError(f"{path} does not hold any {what}")
