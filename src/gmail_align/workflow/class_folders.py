"""Class folders in someone's data: their splits, their classes, and generated twins of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gmail_align.data.decode import SUFFIXES
from gmail_align.importing.archives import open_members
from gmail_align.importing.formats.classes import CIFAR10
from gmail_align.importing.splits import split_of, split_of_folders
from gmail_align.workflow.layout import ARCHIVES, SPLITS, Layout, Table, file_suffix

_GENERATED: Final = frozenset(
    ("fake", "gen", "generated", "synth", "synthetic", "diffusion", "ai", "sd", "sdxl", "flux")
)


def class_folders(folder: Path, files: Sequence[str]) -> Layout | None:
    """Read folders of images named by their class, in the folder itself or in its archives."""
    archives = [Path(name) for name in files if name.endswith(ARCHIVES)]
    top = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    places = archives if archives else [folder]
    named = [path for path in top if _says_generated(path)]
    if not archives and named and len(top) > len(named):
        places = top
    found = {place: _classes(place) for place in places}
    found = {place: own for place, own in found.items() if len({label for _, label in own}) > 1}
    fake = [path for path in found if _says_generated(path)]
    real = {path: own for path, own in found.items() if path not in fake}
    if not real:
        return None
    names = sorted({label for _, label in next(iter(real.values()))})
    importer, options = _importer(names)
    source: Table = {"import": importer, "source": [str(path) for path in real], **options("real")}
    layout = _of_splits(source, sum(real.values(), Counter()))
    layout.classes = len(names)
    layout.notes.append(f"Classes: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}.")
    if fake and {label for _, label in found[fake[0]]} == set(names):
        layout.generated = {
            "import": importer,
            "source": [str(path) for path in fake],
            **options("generated"),
            **({"split": "train"} if len({split for split, _ in found[fake[0]]}) > 1 else {}),
        }
        names_of_fake = ", ".join(path.name for path in fake)
        layout.notes.append(
            f"{names_of_fake} holds generated images of the same classes, by its name."
        )
    return layout


def _of_splits(source: Table, images: Mapping[tuple[str | None, str], int]) -> Layout:
    """Return a set for each split of images, which are counted by split and class."""
    sizes = Counter[str | None]()
    for (split, _), count in images.items():
        sizes[split] += count
    layout = Layout("class folders", {}, {})
    for split, part in SPLITS.items():
        if split not in sizes:
            continue
        if part in layout.data or (split is None and len(sizes) > 1):
            layout.left_out.append(
                f"Images {split or 'of no split'} are left out: no set has them."
            )
            continue
        layout.data[part] = {**source, **({"split": split} if len(sizes) > 1 else {})}
        layout.images[part] = sizes[split]
    return layout


def _says_generated(path: Path) -> bool:
    """Whether a name has a word that stands for generated images."""
    return not _GENERATED.isdisjoint(re.split(r"[^a-z]+", path.name.lower()))


def _classes(place: Path) -> Counter[tuple[str | None, str]]:
    """Count the images of each split and class: the last folder that no split is named by."""
    counts = Counter[tuple[str | None, str]]()
    for name, fault in open_members(place).listing():
        folders = [one for one in name.split("/")[:-1] if split_of(one) is None]
        if not fault and file_suffix(name) in SUFFIXES and folders:
            counts[split_of_folders(name), folders[-1]] += 1
    return counts


def _importer(classes: Sequence[str]) -> tuple[str, Any]:
    """Return the importer of class folders, and its options for real or generated images."""
    plain = {re.sub(r"^\d+_", "", name) for name in classes}
    if plain == set(CIFAR10) and set(classes) != plain:
        return "cifake", lambda side: {side: True}
    return "folder", lambda side: {}
