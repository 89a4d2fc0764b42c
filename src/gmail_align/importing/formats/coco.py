"""COCO's captions json: its images and captions, with every id checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gmail_align.data.captions import safe_id
from gmail_align.data.protocols import Protocol, require_dataset
from gmail_align.errors import DataError
from gmail_align.importing.formats.streams import file_digest, json_items, json_keys
from gmail_align.importing.members import Members
from gmail_align.importing.source import Images, Source, image_places
from gmail_align.importing.staging import Staging


def list_coco(staging: Staging, annotations: Path, members: Members | None = None) -> str:
    """List the images and captions of a json of COCO's format (2014, 2017 and look-alikes).

    Images come by id, captions by image id and then annotation id, as numbers where all are.
    Captions that no text can be are left out; what is no structure of COCO's refuses the file.

    Args:
        staging: Gets the images and captions.
        annotations: COCO's ``captions_*.json``.
        members: Where the images are, to find those that lie in a folder of an archive.

    Returns:
        The sha256 of the file.

    Raises:
        DataError: the file is missing or of another kind, an entry is unusable, an id comes twice,
            or a caption's image is not listed.
    """
    digest, where = file_digest(annotations), str(annotations)
    count = 0
    for entry in json_items(annotations, "images"):
        image_id, name = _image(_object(entry, "images", where), where)
        place = (members.find(name) if members else None) or name
        if not staging.add_image(image_id, place):
            raise DataError(f"{where}: image id {image_id} comes twice: ids must be unique")
        count += 1
    _refuse_other(annotations, "images", count)
    count = 0
    for entry in json_items(annotations, "annotations"):
        _caption(staging, _object(entry, "annotations", where), where, first=count == 0)
        count += 1
    _refuse_other(annotations, "annotations", count)
    for caption_id, image_id in staging.strangers():
        raise DataError(
            f"{where}: annotation {caption_id} belongs to image {image_id}, which is not listed: "
            "the file is cut or mixed from two"
        )
    staging.sort_by_id()
    return digest


def _refuse_other(path: Path, key: str, count: int) -> None:
    """Say what the file is when nothing was found under ``key``."""
    if count:
        return
    keys = json_keys(path)
    if keys is None or not {"images", "annotations"} <= keys.keys():
        raise DataError(
            f"{path} is json but not COCO's: it has no 'images' and 'annotations'; give "
            "captions_*.json"
        )
    if keys[key] != "[":
        raise DataError(f"{path} is json but not COCO's: {key!r} is not a list of objects")
    raise DataError(f"{path} lists no {key}: give the annotations of a split that has captions")


def _object(entry: Any, key: str, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is json but not COCO's: {key!r} is not a list of objects")
    return entry


def _image(entry: dict[str, Any], where: str) -> tuple[str, str]:
    image_id = _id(entry, "id", "an entry of 'images'", where)
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name or not _is_text(name):
        raise DataError(f"{where}: image {image_id} has no usable 'file_name'")
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(
            f"{where}: image {image_id} has the file_name {name!r}, outside the image folder"
        )
    return image_id, name


def _caption(staging: Staging, entry: dict[str, Any], where: str, *, first: bool) -> None:
    if first and "caption" not in entry:
        raise DataError(
            f"{where} is COCO json but not of captions: its annotations have no 'caption'; "
            "use the file captions_*.json"
        )
    caption_id = _id(entry, "id", "an entry of 'annotations'", where)
    image_id = _id(entry, "image_id", "an entry of 'annotations'", where)
    text = entry.get("caption")
    if not isinstance(text, str):
        staging.refuse("captions", caption_id, "has no caption")
    elif not staging.add_caption(caption_id, text, image_id):
        raise DataError(f"{where}: annotation id {caption_id} comes twice: ids must be unique")


def _id(entry: dict[str, Any], key: str, what: str, where: str) -> str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f"{where}: {what} has no {key!r}, or one that is neither a number nor a string"
        )
    return safe_id(str(value), where)


def _is_text(name: str) -> bool:
    return name.isprintable() or not any("\ud800" <= c <= "\udfff" for c in name)


def coco(
    annotations: Annotated[
        Path, Field(description="COCO's captions_*.json, or one of its format.")
    ],
    images: Images = (),
    split: Annotated[
        str | None, Field(description="Name of the split; by default from the file's name.")
    ] = None,
    protocol: Protocol | None = None,
) -> Source:
    """Import COCO-style caption annotations and their images (COCO 2014, 2017 and look-alikes)."""
    require_dataset(protocol, "coco")
    staging, members = Staging(), image_places(images)
    digest = list_coco(staging, annotations, members)
    name = split or annotations.name.partition(".")[0].removeprefix("captions_")
    config = {"format": "coco", "split": name}
    return Source(config=config, inputs={"annotations": digest}, staging=staging, members=members)
