"""Classes of images and the prompts of classes, whatever file they stand in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmail_align.artifacts import MANIFEST, fingerprint, load
from gmail_align.data.classes import CLASS_SETS, class_set
from gmail_align.data.json_files import read_json
from gmail_align.data.npy import read_integers
from gmail_align.data.protocols import PROTOCOLS
from gmail_align.errors import ConfigError, DataError, damage_explained


@dataclass(frozen=True)
class Labels:
    """The class of each image.

    Attributes:
        classes: Image id -> name of its class. Row numbers are the ids of the rows of plain files.
        by_row: Whether the source numbers rows, so that it must have one label a row.
    """

    classes: Mapping[str, str]
    by_row: bool = False

    @property
    def fingerprint(self) -> str:
        """Identity of the labels."""
        return fingerprint(dict(self.classes))

    def of(self, ids: Sequence[str], what: str = "class") -> list[str]:
        """Return the class of each image.

        Args:
            ids: The images.
            what: What the labels are, for messages.

        Raises:
            DataError: an image does not have one, or there are more labels than rows.
        """
        if self.by_row and len(self.classes) != len(ids):
            raise DataError(
                f"{len(self.classes)} labels ({what}) were given for {len(ids)} images: give one "
                "each"
            )
        missing = [name for name in ids if name not in self.classes]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(ids)} images do not have a label ({what}), the first of "
                f"them {missing[0]}: name the {what} of every image"
            )
        return [self.classes[name] for name in ids]


def open_labels(*sources: Path) -> Labels:
    """Read the class of each image from one or several sources.

    A source is JSON (image id to class), a folder of classes that an import made, integers in a
    ``.npy`` file, or a text file with a name a line; the last two number rows.

    Raises:
        DataError: a file cannot be read or is something else, no image is named, or two sources
            disagree about one.
        ArtifactError: a folder does not hold classes.
    """
    table: dict[str, str] = {}
    by_row = False
    for source in sources:
        own, by_row = _read(source)
        for image, name in own.items():
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise DataError(f"{source}: image {image} is of class {name!r}: give it a name")
            if table.setdefault(image, str(name)) != str(name):
                raise DataError(
                    f"{source} says that image {image} is of class {name!r}, and another that it "
                    f"is of {table[image]!r}"
                )
    if not table:
        raise DataError(
            f"{', '.join(map(str, sources))} does not name an image: give image id to class"
        )
    return Labels(table, by_row and len(sources) == 1)


def class_order(names: Iterable[str]) -> list[str]:
    """Return different names of classes in their order: numbers by value, then names by letters."""
    return sorted(set(names), key=lambda name: (not name.isdecimal(), name.zfill(20), name))


def class_numbers(labels: Labels, classes: Sequence[str], known: str | None = None) -> Labels:
    """Return the labels spelled as ``classes`` are.

    Args:
        labels: The class of each image.
        classes: The classes that there are.
        known: A shipped class set that knows other spellings of them, as its own files have them.

    Raises:
        DataError: a class is not one of them.
    """
    listed = set(classes)
    named: dict[str, str] = {}
    for image, said in labels.classes.items():
        name = said
        if known is not None and said not in listed:
            name = class_set(known).key(said) or said
        if name not in listed:
            raise DataError(
                f"image {image} is of class {said!r}, which is not one of the {len(classes)} "
                "classes: check the labels"
            )
        named[image] = name
    return Labels(named, labels.by_row)


def known_set(protocol: str, classes: Sequence[str]) -> str | None:
    """Return the shipped class set whose files' spellings the protocol's labels may have."""
    known = protocol in CLASS_SETS and list(class_set(protocol).keys) == list(classes)
    return protocol if known else None


def class_prompts(path: Path | None, protocol: str) -> dict[str, list[str]]:
    """Return class -> prompts of a file or, without one, those that the protocol's field uses.

    Args:
        path: JSON of class to its prompts, equally many each; or the tabletop's ``classes.json``.
        protocol: Name of the protocol.

    Raises:
        DataError: the file is something else, or classes differ in their number of prompts.
        ConfigError: there is no file, and the protocol does not bring prompts.
    """
    if path is None:
        known = PROTOCOLS.get(protocol)
        if known is None or known.class_set is None:
            sets = ", ".join(name for name, one in PROTOCOLS.items() if one.class_set)
            raise ConfigError(f"give --classes, or as --protocol one that brings them: {sets}")
        return class_set(known.class_set).prompts()
    table = _read_object(path)
    if isinstance(table.get("classes"), dict):
        table = {name: row["prompts"] for name, row in table["classes"].items()}
    for name, prompts in table.items():
        if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
            raise DataError(f"{path}: class {name!r} does not have a list of prompts")
    counts = {len(prompts) for prompts in table.values()}
    if len(counts) != 1 or 0 in counts:
        raise DataError(f"{path}: every class needs the same number of prompts, at least one")
    return table


def _read(source: Path) -> tuple[Mapping[str, Any], bool]:
    """Return image id -> class as the source says it, and whether it numbers rows."""
    if source.suffix == ".npy":
        numbers = read_integers(source)
        if any(number < 0 for number in numbers):
            raise DataError(f"{source} holds labels below 0: number the classes from 0 on")
        return {str(row): str(number) for row, number in enumerate(numbers)}, True
    if (source / MANIFEST).exists():
        source = load(source, "classes").path("labels.json")
    if source.suffix == ".json" or _begins_with_brace(source):
        return _read_object(source), False
    return {str(row): name for row, name in enumerate(_read_lines(source))}, True


def _begins_with_brace(path: Path) -> bool:
    with damage_explained(path), path.open("rb") as file:
        return file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object: give image id to class")
    return value


def _read_lines(path: Path) -> list[str]:
    with damage_explained(path):
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise DataError(f"line {empty[0]} of {path} is empty: every row needs a name")
    return [line.strip() for line in lines]
