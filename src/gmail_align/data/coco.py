"""Reading COCO's captions json: its images and captions, with every id and text checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gmail_align.data.captions import Caption, clean_text, safe_id
from gmail_align.errors import DataError


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images``: its id, and its file relative to the image folder."""

    image_id: str
    file_name: str


@dataclass(frozen=True)
class CocoSplit:
    """What one json file lists: images by id, captions by image id and then annotation id."""

    images: list[CocoImage]
    captions: list[Caption]


def read_coco(annotations: Path) -> CocoSplit:
    """Read a captions json of COCO's format.

    Ids become strings (139 -> ``"139"``) and sort as numbers where they are numbers.

    Raises:
        DataError: the file is missing, is no json or json of another kind; an id comes twice; an
            annotation has an empty or unusable caption or belongs to an image that is not listed.
    """
    data = _load(annotations)
    images = _entries(data, "images", annotations)
    entries = _entries(data, "annotations", annotations)
    if entries and "caption" not in entries[0]:
        raise DataError(
            f"{annotations} is COCO json but not of captions: its annotations have no 'caption'; "
            "use the file captions_*.json"
        )
    listed = [_image(entry, annotations) for entry in images]
    captions = [_caption(entry, annotations) for entry in entries]
    _refuse_twice([image.image_id for image in listed], "image", annotations)
    _refuse_twice([caption.caption_id for caption in captions], "annotation", annotations)
    known = {image.image_id for image in listed}
    for caption in captions:
        if caption.image_id not in known:
            raise DataError(
                f"{annotations}: annotation {caption.caption_id} belongs to image "
                f"{caption.image_id}, which is not listed: the file is cut or mixed from two"
            )
    order = _id_order([*known, *(caption.caption_id for caption in captions)])
    return CocoSplit(
        sorted(listed, key=lambda image: order(image.image_id)),
        sorted(captions, key=lambda caption: (order(caption.image_id), order(caption.caption_id))),
    )


def refuse_absent(split: CocoSplit, images: Path) -> list[int]:
    """Return the size in bytes of every listed image's file.

    Raises:
        DataError: the folder or some of the files are missing; how many, and the first.
    """
    if not images.is_dir():
        raise DataError(
            f"there is no image folder at {images}: give the folder that holds the images"
        )
    sizes = [_size(images / image.file_name) for image in split.images]
    absent = [image for image, size in zip(split.images, sizes, strict=True) if size is None]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(sizes)} listed images are not in {images} (the first is "
            f"{absent[0].file_name}): unpack them or give the right folder"
        )
    return [size for size in sizes if size is not None]


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DataError(
            f"there is no annotation file at {path}: give COCO's captions_*.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not json ({error}): download it again") from error
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise DataError(
            f"{path} is json but not COCO's: it has no 'images' and 'annotations'; give "
            "captions_*.json"
        )
    return data


def _entries(data: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = data[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path} is json but not COCO's: {key!r} is not a list of objects")
    if not entries:
        raise DataError(f"{path} lists no {key}: give the annotations of a split that has captions")
    return entries


def _image(entry: dict[str, Any], path: Path) -> CocoImage:
    image_id = _id(entry, "id", "an entry of 'images'", path)
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{path}: image {image_id} has no usable 'file_name'")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(
            f"{path}: image {image_id} has the file_name {name!r}, outside the image folder"
        )
    return CocoImage(image_id, name)


def _caption(entry: dict[str, Any], path: Path) -> Caption:
    caption_id = _id(entry, "id", "an entry of 'annotations'", path)
    what = f"{path}: annotation {caption_id}"
    text = entry.get("caption")
    if not isinstance(text, str):
        raise DataError(f"{what} has no 'caption': give COCO's captions_*.json, unchanged")
    return Caption(caption_id, clean_text(text, what), _id(entry, "image_id", what, path))


def _id(entry: dict[str, Any], key: str, what: str, path: Path) -> str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f"{path}: {what} has no {key!r}, or one that is neither a number nor a string"
        )
    return safe_id(str(value), f"{path}: {what}")


def _refuse_twice(ids: Sequence[str], what: str, path: Path) -> None:
    seen: set[str] = set()
    for value in ids:
        if value in seen:
            raise DataError(f"{path}: {what} id {value} comes twice: ids must be unique")
        seen.add(value)


def _id_order(ids: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """Return a sort key: by number when every id is one, else by text."""
    if all(value.isdecimal() and value.isascii() for value in ids):
        return lambda value: (int(value), value)
    return lambda value: (0, value)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
