"""COCO's captions json: its images and captions, with every id checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gmail_align.data.ids import fit_id, id_text
from gmail_align.data.protocols import Protocol, require_dataset
from gmail_align.errors import DataError
from gmail_align.importing.members import is_text
from gmail_align.importing.source import Images, Source, image_places
from gmail_align.importing.staging import Staging
from gmail_align.importing.streams import file_digest, json_items, json_keys


def coco(
    annotations: Annotated[Path, Field(description="COCO's captions_*.json, or one like it.")],
    images: Images = (),
    split: Annotated[
        str | None, Field(description="Name of the split; by default from the file's name.")
    ] = None,
    protocol: Protocol | None = None,
) -> Source:
    """Import COCO-style caption annotations and their images (COCO 2014, 2017 and look-alikes).

    Images are sorted by id, captions by image id and then by annotation id. Captions that are empty
    or not text are left out. The command refuses a file of another structure, an id that comes
    twice, and a caption of an image that the file does not list.
    """
    require_dataset(protocol, "coco")
    staging, members = Staging(), image_places(images)
    digest, where = file_digest(annotations), str(annotations)
    count = 0
    for entry in json_items(annotations, "images"):
        image_id, name = _image(_object(entry, "images", where), where)
        if not staging.add_image(image_id, staging.locate(members, name)):
            raise DataError(f"{where}: image id {image_id} comes twice: ids must be unique")
        count += 1
    _refuse_other(annotations, "images", count)
    count = 0
    for entry in json_items(annotations, "annotations"):
        _caption(staging, _object(entry, "annotations", where), where, first=count == 0)
        count += 1
    _refuse_other(annotations, "annotations", count)
    for caption_id, image_id in staging.captions_without_image():
        raise DataError(
            f"{where}: annotation {caption_id} belongs to image {image_id}, which is not listed: "
            "the file is cut or mixed from two"
        )
    staging.sort_by_id()
    split = split or annotations.name.partition(".")[0].removeprefix("captions_")
    return Source(
        config={"format": "coco", "split": split},
        inputs={"annotations": digest},
        staging=staging,
        members=members,
    )


def _refuse_other(path: Path, key: str, count: int) -> None:
    """Say what the file is when nothing was listed under ``key``."""
    if count:
        return
    keys = json_keys(path)
    if keys is None or not {"images", "annotations"} <= keys.keys():
        raise DataError(
            f"{path} is json but not COCO's: it does not have 'images' and 'annotations'; give "
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
    if not isinstance(name, str) or not name or "\0" in name or not is_text(name):
        raise DataError(f"{where}: image {image_id} does not have a usable 'file_name'")
    return image_id, name


def _caption(staging: Staging, entry: dict[str, Any], where: str, *, first: bool) -> None:
    if first and "caption" not in entry:
        raise DataError(
            f"{where} is COCO json but not of captions: its annotations do not have a 'caption'; "
            "use the file captions_*.json"
        )
    caption_id = _id(entry, "id", "an entry of 'annotations'", where)
    image_id = _id(entry, "image_id", "an entry of 'annotations'", where)
    text = entry.get("caption")
    if not isinstance(text, str):
        staging.refuse("captions", caption_id, "does not have a caption")
    elif not staging.add_caption(caption_id, text, image_id):
        raise DataError(f"{where}: annotation id {caption_id} comes twice: ids must be unique")


def _id(entry: dict[str, Any], key: str, what: str, where: str) -> str:
    value = id_text(entry.get(key))
    if not value:
        raise DataError(
            f"{where}: {what} does not have {key!r}, or one that is neither a number nor a string"
        )
    return fit_id(value)
