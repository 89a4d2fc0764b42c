"""Reading COCO's captions json: its images and captions, with every id and text checked."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmail_align.data.captions import Caption, clean_text, safe_id
from gmail_align.errors import DataError


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images``: its id, and its file relative to the image folder."""

    image_id: str
    file_name: str


def load_coco(annotations: Path) -> dict[str, Any]:
    """Load a captions json of COCO's format, its entries still unchecked.

    Raises:
        DataError: the file is missing, is no json, or json of another kind.
    """
    data = _load(annotations)
    for key in ("images", "annotations"):
        entries = data[key]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(
                f"{annotations} is json but not COCO's: {key!r} is not a list of objects"
            )
        if not entries:
            raise DataError(
                f"{annotations} lists no {key}: give the annotations of a split that has captions"
            )
    if "caption" not in data["annotations"][0]:
        raise DataError(
            f"{annotations} is COCO json but not of captions: its annotations have no 'caption'; "
            "use the file captions_*.json"
        )
    return data


def coco_images(data: dict[str, Any], annotations: Path) -> list[CocoImage]:
    """Return the listed images by id; ids become strings, and sort as numbers where all are.

    Raises:
        DataError: an entry has no usable id or file name, or an id comes twice.
    """
    where = str(annotations)
    images = [_image(entry, where) for entry in data["images"]]
    ids = [image.image_id for image in images]
    _refuse_twice(ids, "image", where)
    order = _id_order(ids)
    return sorted(images, key=lambda image: order(image.image_id))


def coco_captions(
    data: dict[str, Any], annotations: Path, images: Sequence[CocoImage]
) -> list[Caption]:
    """Return the captions in the order of ``images`` and then of the annotations' ids.

    Raises:
        DataError: an annotation has no usable id, an empty or unusable caption, or an image that is
            not listed; or an id comes twice.
    """
    where = str(annotations)
    captions = [_caption(entry, where) for entry in data["annotations"]]
    ids = [caption.caption_id for caption in captions]
    _refuse_twice(ids, "annotation", where)
    rank = {image.image_id: number for number, image in enumerate(images)}
    for caption in captions:
        if caption.image_id not in rank:
            raise DataError(
                f"{where}: annotation {caption.caption_id} belongs to image {caption.image_id}, "
                "which is not listed: the file is cut or mixed from two"
            )
    order = _id_order(ids)
    return sorted(captions, key=lambda one: (rank[one.image_id], order(one.caption_id)))


def file_sizes(images: Sequence[CocoImage], folder: Path) -> list[int]:
    """Return the size in bytes of every listed image's file.

    Raises:
        DataError: the folder or some of the files are missing; how many, and the first.
    """
    if not folder.is_dir():
        raise DataError(
            f"there is no image folder at {folder}: give the folder that holds the images"
        )
    sizes = [_size(os.path.join(folder, image.file_name)) for image in images]
    absent = [image for image, size in zip(images, sizes, strict=True) if size is None]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(sizes)} listed images are not in {folder} (the first is "
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


def _image(entry: dict[str, Any], where: str) -> CocoImage:
    image_id = _id(entry, "id", "an entry of 'images'", where)
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where}: image {image_id} has no usable 'file_name'")
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(
            f"{where}: image {image_id} has the file_name {name!r}, outside the image folder"
        )
    return CocoImage(image_id, name)


def _caption(entry: dict[str, Any], where: str) -> Caption:
    caption_id = _id(entry, "id", "an entry of 'annotations'", where)
    what = f"{where}: annotation {caption_id}"
    text = entry.get("caption")
    if not isinstance(text, str):
        raise DataError(f"{what} has no 'caption': give COCO's captions_*.json, unchanged")
    image_id = _id(entry, "image_id", "an entry of 'annotations'", where)
    return Caption(caption_id, clean_text(text, what), image_id)


def _id(entry: dict[str, Any], key: str, what: str, where: str) -> str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f"{where}: {what} has no {key!r}, or one that is neither a number nor a string"
        )
    return safe_id(str(value), where)


def _refuse_twice(ids: Sequence[str], what: str, where: str) -> None:
    seen: set[str] = set()
    for value in ids:
        if value in seen:
            raise DataError(f"{where}: {what} id {value} comes twice: ids must be unique")
        seen.add(value)


def _id_order(ids: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """Return a sort key: by number when every id is one, else by text."""
    if all(value.isdecimal() and value.isascii() for value in ids):
        return lambda value: (int(value), value)
    return lambda value: (0, value)


def _size(path: str) -> int | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
