"""Images with a class: class folders, the eight sets in their own layouts, CIFAKE's two sides."""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import Field

from gmail_align.data.captions import name_id
from gmail_align.data.classes import class_set
from gmail_align.data.decode import SUFFIXES
from gmail_align.data.protocols import Protocol, find_protocol, require_dataset
from gmail_align.errors import DataError
from gmail_align.extras import require
from gmail_align.importing.members import Members, base_name, open_several, suffix
from gmail_align.importing.source import TEMPLATE, Places, Source, Template
from gmail_align.importing.staging import Staging, add, refuse_faults

Row = tuple[str, str, str]
"""Image id, place, class as the files name it."""

GENERATOR: Final = "CompVis/stable-diffusion-v1-4"
"""What made the generated images of CIFAKE, by its paper."""

CIFAR10: Final = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def list_folders(staging: Staging, members: Members, template: str) -> dict[str, str]:
    """List class folders: the class of ``[.../]dog/1.jpg`` is the first folder that divides them.

    Images that all lie in one folder have no class, and get no captions.

    Returns:
        Key -> name of every class, sorted; the name has blanks for ``_``.

    Raises:
        DataError: there is no image, or some are in class folders and others are not.
    """
    refuse_faults(staging, members)
    above: list[str] | None = None
    for name in _images(members):
        folders = name.split("/")[:-1]
        if above is not None:
            same = [one == other for one, other in zip(above, folders, strict=False)]
            folders = folders[: [*same, False].index(False)]
        above = folders
    if above is None:
        raise DataError("the source holds no image: give a folder, zip or tar of images")
    start = len("/".join([*above, ""]))
    labels = {name[start:].partition("/")[0] for name in _images(members) if "/" in name[start:]}
    classes = {label: label.replace("_", " ") for label in sorted(labels)}
    rows = (
        (name_id(name[start:]), name, name[start:].rpartition("/")[0]) for name in _images(members)
    )
    if classes:
        _list(staging, (_in_class(*row) for row in rows), classes, template)
    else:
        _list(staging, rows, {}, "")
    return classes


def _images(members: Members) -> Iterator[str]:
    for name, fault in members.listing():
        if not fault and suffix(name) in SUFFIXES:
            yield name


def _in_class(image_id: str, place: str, folder: str) -> Row:
    if not folder:
        raise DataError(f"{place} is in no class folder, and others are: put it into one")
    return image_id, place, folder.partition("/")[0]


def list_cifake(
    staging: Staging, members: Members, *, generated: bool, template: str
) -> dict[str, str]:
    """List one side of CIFAKE: ``K_class/N.jpg``, or ``{REAL,FAKE}/N (C).jpg`` as published.

    The k-th real and the k-th generated image of a class get ids that pair them (``dog-00007`` and
    ``dog-00007-0-0``); they share the class and its prompt, no more.

    Returns:
        Key -> name of the ten classes.

    Raises:
        DataError: an image has no class, or there is none.
    """
    side = "FAKE" if generated else "REAL"
    counts = dict.fromkeys(CIFAR10, 0)
    refuse_faults(staging, members)
    for name, fault in members.listing():
        folders = name.split("/")[:-1]
        other = {"REAL", "FAKE"} & set(folders)
        if fault or suffix(name) not in SUFFIXES or (other and side not in other):
            continue
        label = _cifake_class(name)
        image_id = f"{label}-{counts[label]:05d}"
        counts[label] += 1
        text = template.replace("{}", label)
        if generated:
            staging.add_image(f"{image_id}-0-0", name, label=label, prompt=text)
        else:
            staging.add_image(image_id, name, label=label)
            staging.add_caption(f"{image_id}-0", text, image_id)
    if not any(counts.values()):
        raise DataError(f"the source holds no {side.lower()} image of CIFAKE")
    return {label: label for label in CIFAR10}


def _cifake_class(name: str) -> str:
    folder = name.split("/")[-2] if "/" in name else ""
    if match := re.fullmatch(r"(\d)_(\w+)", folder):
        return CIFAR10[int(match[1])]
    if match := re.fullmatch(r"\d+(?: \((\d+)\))?", base_name(name)):
        number = int(match[1] or 1)
        if 1 <= number <= len(CIFAR10):
            return CIFAR10[number - 1]
    raise DataError(f"{name} names no class of CIFAKE: give its zips as they are published")


def list_classification(
    staging: Staging, name: str, members: Members, split: str, template: str
) -> dict[str, str]:
    """List one of the eight sets in the layout of its authors, which is also torchvision's.

    Args:
        staging: Gets the images, and one caption each by ``template``.
        name: One of :data:`gmail_align.data.classes.CLASS_SETS`.
        members: Folder, zip or tar that holds the set; both its lists and its images.
        split: Split as the set's files name it (``test``, ``train``, ``val``).
        template: Text of the captions.

    Returns:
        Key -> name of every class, in the set's order.

    Raises:
        DataError: the files of the set are not there, or name an unknown class.
    """
    own = class_set(name)
    _list(staging, _known(name, members, split), own.names, template)
    if not staging.count("images"):
        raise DataError(f"the source lists no image of {name} {split}")
    return dict(own.names)


def _known(name: str, members: Members, split: str) -> Iterator[Row]:
    """Yield a set's images with the keys of their classes."""
    own = class_set(name)
    for image_id, place, said in _LAYOUTS[name](members, split):
        key = own.key(said)
        if key is None:
            raise DataError(f"{place} is of class {said!r}, which {name} does not have")
        yield image_id, place, key


def _list(staging: Staging, rows: Iterable[Row], names: Mapping[str, str], template: str) -> None:
    for image_id, place, label in rows:
        if not staging.add_image(image_id, place, label=label):
            staging.refuse("images", image_id, f"{place} comes twice; the first is kept")
            continue
        if label:
            add(staging, image_id, place, [(f"{image_id}-0", template.replace("{}", names[label]))])


def _root(members: Members, marker: str, *roots: str) -> str:
    """Return the first of ``roots`` below which the file ``marker`` is."""
    for root in ("", *roots):
        if members.stamp(root + marker) is not None:
            return root
    raise DataError(
        f"the source has no {marker}, which lists the images: give the set as its authors pack it"
    )


def _read_lines(members: Members, name: str) -> Iterator[str]:
    for line in members.read(name).decode("utf-8", "replace").splitlines():
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
    for label, images in json.loads(members.read(root + marker)).items():
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
    found = False
    for place, fault in members.listing():
        parts = place.split("/")
        if not fault and suffix(place) in SUFFIXES and above in parts[:-2]:
            at = parts.index(above)
            if len(parts) == at + 3:
                found = True
                yield place, parts[at + 1], parts[at + 2]
    if not found:
        raise DataError(f"the source has no images in class folders below {above}/: unpack them so")


def _cars(members: Members, split: str) -> Iterator[Row]:
    marker = {"test": "cars_test_annos_withlabels.mat", "train": "devkit/cars_train_annos.mat"}
    root = _root(members, marker.get(split, split), "stanford_cars/")
    keys = class_set("stanford_cars").keys
    for row in _mat_rows(members.read(root + marker[split])):
        image, number = str(row["fname"]), int(row["class"])
        if not 1 <= number <= len(keys):
            raise DataError(f"{image} is of class {number}, and Stanford Cars has {len(keys)}")
        yield name_id(image), f"{root}cars_{split}/{image}", keys[number - 1]


def _mat_rows(data: bytes) -> Iterator[Any]:
    """Yield the entries of ``annotations`` in a MATLAB file; they hold ``fname`` and ``class``."""
    scipy_io = require("scipy.io", "report")
    try:
        yield from scipy_io.loadmat(io.BytesIO(data), squeeze_me=True)["annotations"]
    except (KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise DataError(f"the .mat file of Stanford Cars cannot be read: {error!r}") from error


_LAYOUTS: Final[Mapping[str, Callable[[Members, str], Iterator[Row]]]] = {
    "dtd": _dtd,
    "stanford_cars": _cars,
    "sun397": _sun397,
    "food101": _food101,
    "fgvc_aircraft": _aircraft,
    "oxford_pets": _pets,
    "caltech101": _caltech101,
    "imagenet": _imagenet,
}


def folder(source: Places, template: Template = TEMPLATE) -> Source:
    """Import folders of images named by their class; each image's caption is the template."""
    staging, members = Staging(), open_several(source)
    names = list_folders(staging, members, template)
    config = {"format": "folder", "template": template}
    return _whole(config, staging, members, names=names or None, templates=[template])


def cifake(
    source: Places,
    real: Annotated[bool, Field(description="Import the real images.")] = False,
    generated: Annotated[bool, Field(description="Import the generated images.")] = False,
    split: Annotated[str, Field(description="Name of the split.")] = "train",
    template: Template = TEMPLATE,
) -> Source:
    """Import the real or the generated images of CIFAKE, with ids by which `pair` joins them."""
    if real == generated:
        raise DataError("CIFAKE has two kinds of images: give --real or --generated, not both")
    staging, members = Staging(), open_several(source)
    names = list_cifake(staging, members, generated=generated, template=template)
    kind = "generated" if generated else "real"
    config = {"format": "cifake", "side": kind, "split": split, "template": template}
    record = {"source": "generated", "generator": GENERATOR} if generated else {}
    return _whole(config, staging, members, names=names, templates=[template], record=record)


def classification(
    name: Annotated[
        str,
        Field(
            description="dtd, stanford_cars, sun397, food101, fgvc_aircraft, oxford_pets, "
            "caltech101 or imagenet.",
            json_schema_extra={"argument": "SET"},
        ),
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
    names = list_classification(staging, name, members, split, template)
    config = {"format": name, "split": split, "template": template}
    listed = _whole(config, staging, members, names=names, templates=own.templates)
    return replace(listed, convert=True, protocol=name if split == scored else None)


def _whole(config: dict[str, Any], staging: Staging, members: Members, **more: Any) -> Source:
    """Make a source of a folder or archive that holds everything."""
    inputs = {"listed": staging.fingerprint()}
    return Source(config=config, inputs=inputs, staging=staging, members=members, **more)
