"""What a folder of someone's data holds: its layout, splits and sizes; read without torch."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

from gmail_align.data.decode import SUFFIXES
from gmail_align.errors import DataError
from gmail_align.importing.archives import scan_tar
from gmail_align.importing.formats.image_folders import captions_in
from gmail_align.importing.members import is_text
from gmail_align.importing.parquet import parquet_file
from gmail_align.importing.rows import table_rows
from gmail_align.importing.splits import ARROW, split_of, split_of_file, split_of_folders
from gmail_align.importing.streams import json_items, json_keys, text_lines
from gmail_align.workflow.class_folders import class_folders
from gmail_align.workflow.layout import ARCHIVES, SPLITS, Layout, Table, file_suffix

_TABLES: Final = re.compile(r"(captions|metadata|prompts)\.(jsonl|json|csv|tsv)", re.IGNORECASE)
_CAPTION_COLUMNS: Final = ("caption", "captions", "text", "sentences", "sentence", "prompt")
_IMAGE_COLUMNS: Final = ("image", "file_name", "filename", "image_path", "path", "file")
_LOOKED_AT: Final = 50_000
"""Files of a folder that are looked at."""
_KINDS: Final = frozenset(("parquet", "csv", "tsv", "jsonl", "json", "txt", "tar", "zip", "arrow"))
"""Suffixes of files, besides images, that may hold data."""
_FOLDERS: Final = 1000
"""Folders in which images are looked for."""
_READ: Final = 1000
"""Text files that are read to estimate how many captions an image has."""


def find_layout(place: Path) -> Layout:
    """Look at a folder or a file, and say what it holds and how a recipe reads it.

    Images of a table, or of annotations, lie in the folder around it.

    Raises:
        DataError: there is no such place, or nothing in it is known.
    """
    if not place.exists():
        raise DataError(f"there is no folder {place}: give the folder of your data")
    place = Path(os.path.realpath(place))
    files = sorted(islice(_files(place), _LOOKED_AT)) if place.is_dir() else [str(place)]
    folder = place if place.is_dir() else place.parent
    looks = [_annotations, _shards, _parquet, _captions_beside, _tables]
    for look in [*looks, class_folders] if place.is_dir() or files[0].endswith(ARCHIVES) else looks:
        layout = look(folder, files)
        if layout is not None:
            layout.left_out += _unread(layout, files) if look in (_shards, _parquet) else []
            return _with_splits(layout)
    packed = [name for name in files if name.lower().endswith(ARCHIVES)]
    more = f"; unpack {os.path.basename(packed[0])} first if it holds them" if packed else ""
    more += f"; it has {ARROW}" if any(name.endswith(".arrow") for name in files) else ""
    raise DataError(
        f"{place} holds nothing that is known: annotations (COCO's or Karpathy's json), Parquet, "
        "WebDataset shards, images with captions beside them, tables of images and captions, or "
        f"class folders{more}"
    )


def _unread(layout: Layout, files: Sequence[str]) -> list[str]:
    """Say which files a layout that reads nothing but its sources passes over, by suffix."""
    used = {name for table in layout.data.values() for name in table["source"]}
    kinds = Counter(file_suffix(name) for name in files if name not in used)
    known = {kind: n for kind, n in sorted(kinds.items()) if kind in SUFFIXES or kind in _KINDS}
    listed = ", ".join(f"{n} .{kind}" for kind, n in known.items())
    return [f"Files that this does not read: {listed}."] if known else []


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder that is not hidden, and the names of its files."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield root, names


def _files(folder: Path) -> Iterator[str]:
    for root, names in _walk(folder):
        paths = (os.path.join(root, name) for name in sorted(names) if name[0] != ".")
        yield from filter(is_text, paths)


def _of_splits(folder: Path, files: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return set of a recipe -> its files, and notes on the files of splits that are left out."""
    by_split: dict[str | None, list[str]] = {}
    for name in files:
        split = split_of_file(Path(name).relative_to(folder).as_posix())
        by_split.setdefault(split, []).append(name)
    sets: dict[str, list[str]] = {}
    notes = []
    for split, part in SPLITS.items():
        if split in by_split and part in sets:
            named = f"of the split {split}" if split else "that name no split"
            notes.append(f"Files {named} are left out: others are the {part} set.")
        elif split in by_split:
            sets[part] = by_split[split]
    return sets, notes


def _image_places(
    folder: Path, files: Sequence[str], names: Sequence[str], split: str = ""
) -> list[str]:
    """Return the archives that may hold the images, those of the split first, or their folder.

    Args:
        folder: The whole folder.
        files: Its files.
        names: What the first image may be called.
        split: The split of the images.
    """
    archives = [name for name in files if name.endswith(ARCHIVES)]
    if archives:
        own = [name for name in archives if split and split_of_file(name) == split]
        return own or archives
    below = [home for home, _ in islice(_walk(folder), _FOLDERS)]
    have = ([one for one in below if os.path.isfile(os.path.join(one, name))] for name in names)
    homes: list[str] = next(filter(None, have), [])
    own = [home for home in homes if split and split_of(os.path.basename(home)) == split]
    found = own or homes
    return found if len(found) == 1 else [str(folder)]


def _annotations(folder: Path, files: Sequence[str]) -> Layout | None:
    """Read Karpathy's json, or COCO's."""
    coco: list[str] = []
    for name in files:
        if not name.endswith((".json", ".json.gz")):
            continue
        try:
            keys = json_keys(Path(name)) or {}
            if "images" not in keys:
                continue
            first = next(iter(json_items(Path(name), "images")), None)
        except (DataError, ValueError):
            continue
        if isinstance(first, dict) and "sentences" in first:
            return _karpathy(folder, files, name)
        if "annotations" in keys and _has_captions(Path(name)):
            coco.append(name)
    return _coco(folder, files, coco) if coco else None


def _has_captions(path: Path) -> bool:
    first = next(iter(json_items(path, "annotations")), None)
    return isinstance(first, dict) and "caption" in first


def _karpathy(folder: Path, files: Sequence[str], name: str) -> Layout:
    images, captions = Counter[str](), Counter[str]()
    names: dict[str, list[str]] = {}
    first: list[str] = []
    for entry in json_items(Path(name), "images"):
        if not isinstance(entry, dict) or not isinstance(entry.get("sentences"), list):
            raise DataError(f"{name}: an entry of 'images' is not of Karpathy's layout")
        base = str(entry.get("filename"))
        first = first or [f"{entry['filepath']}/{base}" if entry.get("filepath") else base, base]
        own = str(entry.get("split"))
        split = SPLITS.get(own, "train")
        images[split] += 1
        captions[split] += len(entry["sentences"])
        if own not in names.setdefault(split, []):
            names[split].append(own)
    places = _image_places(folder, files, first)
    data = {
        split: {
            "import": "karpathy",
            "source": name,
            "images": places,
            "split": names[split],
        }
        for split in images
    }
    return Layout("Karpathy's json", data, dict(images), dict(captions))


def _coco(folder: Path, files: Sequence[str], names: Sequence[str]) -> Layout:
    data, images, captions = dict[str, Table](), dict[str, int](), dict[str, int]()
    sets, left_out = _of_splits(folder, names)
    for part, (name, *others) in sets.items():
        if others:
            left_out.append(
                f"{Path(others[0]).name} is left out: {Path(name).name} is the {part} set."
            )
        first: Any = next(json_items(Path(name), "images"), {})
        image = [str(first.get("file_name"))] if isinstance(first, dict) else []
        places = _image_places(folder, files, image, split_of_file(Path(name).name) or "")
        data[part] = {"import": "coco", "source": name, "images": places}
        images[part] = sum(1 for _ in json_items(Path(name), "images"))
        captions[part] = sum(1 for _ in json_items(Path(name), "annotations"))
    return Layout("COCO's json", data, images, captions, left_out=left_out)


def _shards(folder: Path, files: Sequence[str]) -> Layout | None:
    """Read WebDataset shards: tars of images with a text or a json of the same key."""
    shards = [name for name in files if name.endswith(".tar")]
    if not shards:
        return None
    kinds = Counter(file_suffix(name) for name, *_ in scan_tar(Path(shards[0])))
    if not kinds.keys() & SUFFIXES or not kinds.keys() & {"txt", "json"}:
        return None
    each = sum(count for kind, count in kinds.items() if kind in SUFFIXES)
    sets, left_out = _of_splits(folder, shards)
    data = {part: {"import": "webdataset", "source": own} for part, own in sets.items()}
    images = {part: each * len(own) for part, own in sets.items()}
    shown = f"{len(shards)} shards; the first holds {each} images, and all are taken as alike."
    return Layout(
        "WebDataset shards", data, images, counted=False, notes=[shown], left_out=left_out
    )


def _parquet(folder: Path, files: Sequence[str]) -> Layout | None:
    """Read Parquet with a column of images and one of captions."""
    tables = [name for name in files if name.endswith(".parquet")]
    if not tables:
        return None
    with parquet_file(Path(tables[0])) as file:
        columns = file.schema_arrow.names
    caption = next((name for name in _CAPTION_COLUMNS if name in columns), None)
    image = next((n for n in ("image", "jpg", "img", "image_path") if n in columns), None)
    if caption is None or image is None:
        return None
    options = {"import": "parquet", "image_column": image, "caption_column": caption}
    sets, left_out = _of_splits(folder, tables)
    data = {part: {**options, "source": own} for part, own in sets.items()}
    images = {part: sum(map(_parquet_length, own)) for part, own in sets.items()}
    return Layout("Parquet", data, images, counted=False, left_out=left_out)


def _parquet_length(name: str) -> int:
    with parquet_file(Path(name)) as file:
        return int(file.metadata.num_rows)


def _captions_beside(folder: Path, files: Sequence[str]) -> Layout | None:
    """Read images with a table of captions in their folder, or with a text file each."""
    images = [name for name in files if file_suffix(name) in SUFFIXES]
    table = next((name for name in files if _TABLES.fullmatch(os.path.basename(name))), None)
    texts = {os.path.splitext(n)[0]: n for n in files if n.endswith((".txt", ".caption"))}
    with_text = sum(os.path.splitext(name)[0] in texts for name in images)
    if not images or (table is None and with_text < len(images) / 2):
        return None
    kind = "images with text files" if table is None else f"images with {os.path.basename(table)}"
    counts = Counter(split_of_folders(Path(name).relative_to(folder).as_posix()) for name in images)
    data, sizes, left_out = dict[str, Table](), dict[str, int](), list[str]()
    for split, part in SPLITS.items():
        if split not in counts or (split is None and len(counts) > 1) or part in data:
            if split in counts:
                left_out.append(f"Images {split or 'of no split'} are left out of the {part} set.")
            continue
        data[part] = {"import": "imagefolder", "source": [str(folder)]}
        data[part] |= {"split": split} if len(counts) > 1 else {}
        sizes[part] = counts[split]
    if table is None:
        own = [texts[stem] for name in images if (stem := os.path.splitext(name)[0]) in texts]
        each = _lines(own[:_READ]) / len(own[:_READ])
    else:
        each = sum(len(captions_in(row)) for row in _records(table)) / len(images)
    captions = {part: round(each * count) for part, count in sizes.items()}
    return Layout(kind, data, sizes, captions, counted=False, left_out=left_out)


def _lines(files: Sequence[str]) -> int:
    """Count the lines of files that are not blank."""
    count = 0
    for name in files:
        with suppress(DataError):  # the import lists what cannot be read
            texts = (text for _, text in text_lines(Path(name)) if isinstance(text, str))
            count += sum(bool(text.strip()) for text in texts)
    return count


def _tables(folder: Path, files: Sequence[str]) -> Layout | None:
    """Read CSV, TSV or JSON lines whose rows name an image and a caption."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name in files:
        if name.endswith((".csv", ".tsv", ".jsonl")):
            first = next(_records(name), {})
            caption = next((one for one in _CAPTION_COLUMNS if one in first), None)
            image = next((one for one in _IMAGE_COLUMNS if one in first), None)
            if caption is not None and image is not None:
                alike.setdefault((image, caption), []).append(name)
    if not alike:
        return None
    (image, caption), tables = next(iter(alike.items()))
    sets, left_out = _of_splits(folder, tables)
    others = [os.path.basename(name) for own in alike.values() if own != tables for name in own]
    left_out += [f"{name} is left out: its columns differ." for name in others]
    loose = any(file_suffix(name) in SUFFIXES for name in files)
    places = [str(folder)] if loose else _image_places(folder, files, ())
    options = {"import": "csv", "images": places}
    options |= {"image_column": image, "caption_column": caption}
    data = {part: {**options, "source": own} for part, own in sets.items()}
    rows = {
        part: Counter(str(row.get(image)) for name in own for row in _records(name))
        for part, own in sets.items()
    }
    images = {part: len(own) for part, own in rows.items()}
    captions = {part: own.total() for part, own in rows.items()}
    kind = f"tables of images and captions ({', '.join(map(os.path.basename, tables[:3]))})"
    return Layout(kind, data, images, captions, left_out=left_out)


def _records(name: str) -> Iterator[Mapping[str, Any]]:
    return (row for _, row in table_rows(Path(name)) if isinstance(row, Mapping))


def _with_splits(layout: Layout) -> Layout:
    """Say how many images each set has, and hold out the sets that the folder does not have."""
    for split, table in layout.data.items():
        images = layout.images[split]
        counts = {"images": images, "captions": layout.captions.get(split, images)}
        table["expect" if layout.counted else "about"] = counts
    if "train" not in layout.data:
        split = next(iter(layout.data))
        layout.data["train"] = layout.data.pop(split)
        layout.images["train"] = layout.images.pop(split)
        layout.notes.append(f"The only split is {split}: it is trained on.")
    if "test" not in layout.data and "validation" in layout.data:
        layout.data["test"] = layout.data.pop("validation")
        layout.images["test"] = layout.images.pop("validation")
        layout.notes.append("There is no test split: the validation split is the test set.")
    for split in ("test", "validation"):
        if split not in layout.data:
            layout.data[split] = {"share": 0.1}
            layout.images[split] = round(layout.images["train"] * 0.1)
            layout.images["train"] -= layout.images[split]
            layout.notes.append(f"A tenth of the training images is held out as the {split} set.")
    return layout
