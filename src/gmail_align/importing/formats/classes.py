"""Images with a class: class folders, the eight sets in their own layouts, CIFAKE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Final

from pydantic import Field

from gmail_align.data.classes import CLASS_SETS, class_set
from gmail_align.data.ids import numbered
from gmail_align.data.protocols import Protocol, find_protocol, require_dataset
from gmail_align.errors import DataError
from gmail_align.importing.archives import open_several
from gmail_align.importing.formats.class_layouts import LAYOUTS, Row
from gmail_align.importing.formats.image_folders import common_folder, image_names
from gmail_align.importing.members import base_name, nothing_found
from gmail_align.importing.source import TEMPLATE, Places, Source, Template, whole_source
from gmail_align.importing.splits import SplitChoice, choose_split, split_of, split_of_folders
from gmail_align.importing.staging import Staging

GENERATOR: Final = "CompVis/stable-diffusion-v1-4"
"""What made the generated images of CIFAKE, by its paper."""

CIFAR10: Final = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def folder(source: Places, template: Template = TEMPLATE, split: SplitChoice = None) -> Source:
    """Import folders of images named by their class; each image's caption is the template.

    The class of ``[.../]dog/1.jpg`` is the first folder that divides the images. Its name in a
    caption has blanks for ``_``. Images that all lie in one folder do not have a class, and do not
    get captions.
    """
    staging, members = Staging(), open_several(source)
    staging.refuse_faults(members)
    kept = choose_split(map(split_of_folders, image_names(members)), split, "the source")
    names = [name for name in image_names(members) if kept in (None, split_of_folders(name))]
    if not names:
        raise nothing_found(members, "the source does not hold an image")
    inside = {name: _below_split(name) if kept or split == "all" else name for name in names}
    start = len(common_folder(list(inside.values())))
    labels = {name[start:].partition("/")[0] for name in inside.values() if "/" in name[start:]}
    classes = {label: label.replace("_", " ") for label in sorted(labels)}
    for name in names:
        label, slash, _ = inside[name][start:].partition("/")
        if classes and not slash:
            raise DataError(f"{name} is in no class folder, and others are: put it into one")
        image_id = staging.image_id(inside[name][start:], name)
        _add(staging, (image_id, name, label if classes else ""), classes, template)
    staging.count_others(members)
    config = {"format": "folder", "template": template, **({"split": split} if split else {})}
    listed = whole_source(staging, members, config)
    return replace(listed, names=classes or None, templates=[template])


def _below_split(name: str) -> str:
    """Return a path without the folder that is named by a split."""
    *folders, base = name.split("/")
    at = next((place for place, one in enumerate(folders) if split_of(one)), None)
    return "/".join([*(one for place, one in enumerate(folders) if place != at), base])


def cifake(
    source: Places,
    real: Annotated[bool, Field(description="Import the real images.")] = False,
    generated: Annotated[bool, Field(description="Import the generated images.")] = False,
    split: Annotated[str, Field(description="Name of the split.")] = "train",
    template: Template = TEMPLATE,
) -> Source:
    """Import the real or the generated images of CIFAKE, with ids by which `pair` joins them.

    Images are ``K_class/N.jpg``, or ``{REAL,FAKE}/N (C).jpg`` as published. The k-th real and the
    k-th generated image of a class get ids that pair them (``dog-00007`` and ``dog-00007-0-0``).
    They share the class and its prompt, no more.
    """
    if real == generated:
        raise DataError("CIFAKE has two kinds of images: give --real or --generated, not both")
    staging, members = Staging(), open_several(source)
    kind = "generated" if generated else "real"
    folder_name = "FAKE" if generated else "REAL"
    counts = dict.fromkeys(CIFAR10, 0)
    staging.refuse_faults(members)
    splits = {split_of_folders(name) for name in image_names(members)} - {None}
    for name in image_names(members):
        other = {"REAL", "FAKE"} & set(name.split("/")[:-1])
        if other and folder_name not in other:
            continue
        if splits and split_of_folders(name) != split_of(split):
            continue
        label = _cifake_class(name)
        image_id = f"{label}-{counts[label]:05d}"
        counts[label] += 1
        text = template.replace("{}", label)
        if generated:
            image_id = numbered(numbered(image_id, 0), 0)
            staging.add_image(image_id, name, label=label, prompt=text)
        else:
            staging.add_image(image_id, name, label=label)
            staging.add_caption(numbered(image_id, 0), text, image_id)
    if not any(counts.values()):
        raise nothing_found(members, f"the source does not hold a {kind} image of CIFAKE")
    config = {"format": "cifake", "side": kind, "split": split, "template": template}
    record = {"source": "generated", "generator": GENERATOR} if generated else {}
    listed = whole_source(staging, members, config)
    names = {label: label for label in CIFAR10}
    return replace(listed, names=names, templates=[template], record=record)


def _cifake_class(name: str) -> str:
    folder = name.split("/")[-2] if "/" in name else ""
    if match := re.fullmatch(r"(\d)_(\w+)", folder):
        return CIFAR10[int(match[1])]
    if match := re.fullmatch(r"\d+(?: \((\d+)\))?", base_name(name)):
        number = int(match[1] or 1)
        if 1 <= number <= len(CIFAR10):
            return CIFAR10[number - 1]
    raise DataError(f"{name} names no class of CIFAKE: give its zips as they are published")


def classification(
    name: Annotated[
        str,
        Field(description=f"{', '.join(CLASS_SETS)}.", json_schema_extra={"argument": "SET"}),
    ],
    source: Places,
    split: Annotated[
        str | None, Field(description="Split; by default the one that the set is scored on.")
    ] = None,
    template: Template = TEMPLATE,
    protocol: Protocol | None = None,
) -> Source:
    """Import a classification set in the layout of its authors, with OpenAI's prompts."""
    own = class_set(name)
    require_dataset(protocol, name)
    scored = find_protocol(name).split
    split = split or scored
    staging, members = Staging(), open_several(source)
    for image_id, place, label in LAYOUTS[name](members, split):
        key = own.key(label)
        if key is None:
            raise DataError(f"{place} is of class {label!r}, which {name} does not have")
        _add(staging, (image_id, place, key), own.names, template)
    if not staging.count("images"):
        raise nothing_found(members, f"the source does not list an image of {name} {split}")
    config = {"format": name, "split": split, "template": template}
    return replace(
        whole_source(staging, members, config),
        names=dict(own.names),
        templates=own.templates,
        convert=True,
        protocol=name if split == scored else None,
    )


def _add(staging: Staging, row: Row, names: Mapping[str, str], template: str) -> None:
    image_id, place, label = row
    if not staging.add_image(image_id, place, label=label):
        staging.refuse("images", image_id, f"{place} comes twice; the first is kept")
    elif label:
        text = template.replace("{}", names[label])
        staging.add(image_id, place, [(numbered(image_id, 0), text)])
