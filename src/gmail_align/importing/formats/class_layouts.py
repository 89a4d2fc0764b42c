"""The eight classification sets, each in the layout of its authors, which is also torchvision's."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from gmail_align.data.classes import class_set
from gmail_align.data.decode import SUFFIXES
from gmail_align.data.ids import name_id
from gmail_align.errors import DataError
from gmail_align.importing.formats.matlab import struct_rows
from gmail_align.importing.members import Members, nothing_found, suffix
from gmail_align.importing.streams import Inside, json_value, text_lines

Row = tuple[str, str, str]
"""Image id, place, class as the files name it."""


def _root(members: Members, marker: str, *roots: str) -> str:
    """Return the first of ``roots`` below which the file ``marker`` is."""
    for root in ("", *roots):
        if members.find(root + marker) == root + marker:
            return root
    raise nothing_found(
        members,
        f"the source does not have {marker}, which lists the images: give the set as its authors "
        "pack it",
    )


def _read_lines(members: Members, name: str) -> Iterator[str]:
    for number, line in text_lines(Inside(name, members.read(name))):
        if isinstance(line, DataError):
            raise DataError(f"{name}: line {number} {line}")
        if line.strip():
            yield line.strip()


def _dtd(members: Members, split: str) -> Iterator[Row]:
    marker = f"labels/{split}1.txt"
    root = _root(members, marker, "dtd/", "dtd/dtd/")
    for line in _read_lines(members, root + marker):
        yield name_id(line), f"{root}images/{line}", line.partition("/")[0]


def _food101(members: Members, split: str) -> Iterator[Row]:
    marker = f"meta/{split}.json"
    root = _root(members, marker, "food-101/")
    listed = json_value(Inside(root + marker, members.read(root + marker)))
    if not isinstance(listed, dict) or not all(isinstance(one, list) for one in listed.values()):
        raise DataError(f"{root + marker} is json but not Food-101's: it maps classes to images")
    for label, images in listed.items():
        for image in images:
            yield name_id(f"{image}.jpg"), f"{root}images/{image}.jpg", label


def _aircraft(members: Members, split: str) -> Iterator[Row]:
    marker = f"images_variant_{split}.txt"
    root = _root(members, marker, "data/", "fgvc-aircraft-2013b/data/")
    for line in _read_lines(members, root + marker):
        image, _, variant = line.partition(" ")
        yield name_id(f"{image}.jpg"), f"{root}images/{image}.jpg", variant


def _pets(members: Members, split: str) -> Iterator[Row]:
    marker = f"annotations/{'trainval' if split == 'train' else split}.txt"
    root = _root(members, marker, "oxford-iiit-pet/")
    for line in _read_lines(members, root + marker):
        image = line.split()[0]
        yield name_id(f"{image}.jpg"), f"{root}images/{image}.jpg", image.rpartition("_")[0]


def _sun397(members: Members, split: str) -> Iterator[Row]:
    marker = {"test": "Testing_01.txt", "train": "Training_01.txt"}.get(split, f"{split}.txt")
    root = _root(members, marker, "SUN397/", "Partitions/")
    folder = "SUN397/" if root == "Partitions/" else root
    for line in _read_lines(members, root + marker):
        path = line.strip("/")
        label = " ".join(path.split("/")[1:-1])
        yield name_id(posixpath.basename(path)), folder + path, label


def _caltech101(members: Members, split: str) -> Iterator[Row]:
    for place, label, rest in _class_folders(members, "101_ObjectCategories"):
        if label != "BACKGROUND_Google":
            yield name_id(f"{label}/{rest}"), place, label


def _imagenet(members: Members, split: str) -> Iterator[Row]:
    for place, label, rest in _class_folders(members, split):
        yield name_id(f"{label}/{rest}"), place, label


def _class_folders(members: Members, above: str) -> Iterator[tuple[str, str, str]]:
    """Yield (place, class, file) of every image two levels below the folder ``above``."""
    count = 0
    for place, fault in members.listing():
        parts = place.split("/")
        if not fault and suffix(place) in SUFFIXES and above in parts[:-2]:
            at = parts.index(above)
            if len(parts) == at + 3:
                count += 1
                yield place, parts[at + 1], parts[at + 2]
    if not count:
        raise nothing_found(
            members, f"the source does not have images in class folders below {above}/"
        )


def _cars(members: Members, split: str) -> Iterator[Row]:
    marker = {"test": "cars_test_annos_withlabels.mat", "train": "devkit/cars_train_annos.mat"}
    if split not in marker:
        raise DataError(f"Stanford Cars does not have a split {split!r}: use test or train")
    root = _root(members, marker[split], "stanford_cars/")
    keys = class_set("stanford_cars").keys
    for row in struct_rows(members.read(root + marker[split]), "annotations"):
        image, number = row.get("fname"), row.get("class")
        if not isinstance(image, str) or not isinstance(number, float):
            raise DataError("an entry of the .mat file does not have 'fname' and 'class'")
        if number not in range(1, len(keys) + 1):
            raise DataError(f"{image} is of class {number:g}, and Stanford Cars has {len(keys)}")
        yield name_id(image), f"{root}cars_{split}/{image}", keys[int(number) - 1]


LAYOUTS: Final[Mapping[str, Callable[[Members, str], Iterator[Row]]]] = {
    "dtd": _dtd,
    "stanford_cars": _cars,
    "sun397": _sun397,
    "food101": _food101,
    "fgvc_aircraft": _aircraft,
    "oxford_pets": _pets,
    "caltech101": _caltech101,
    "imagenet": _imagenet,
}
"""Name of the set -> the function that lists its images."""
