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
from gmail_align.importing.splits import split_of, split_of_file, split_of_folders
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
    layout = _sets({"import": importer, **options("real")}, real)
    layout.classes = len(names)
    layout.notes.append(f"Classes: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}.")
    twins = {path: found[path] for path in fake}
    if twins and {label for _, label in twins[fake[0]]} == set(names):
        made = _sets({"import": importer, **options("generated")}, twins)
        split = "train" if "train" in made.data else next(iter(made.data))
        layout.generated = made.data[split]
        paths = ", ".join(Path(one).name for one in layout.generated["source"])
        hold = "holds" if len(layout.generated["source"]) == 1 else "hold"
        layout.notes.append(f"{paths} {hold} generated images of the same classes, by name.")
        others = [
            path for part, own in made.data.items() if part != split for path in own["source"]
        ]
        layout.left_out += [
            f"{Path(path).name} is left out: generated images are for training."
            for path in dict.fromkeys(others)
            if path not in layout.generated["source"]
        ]
    return layout


def _sets(options: Table, places: Mapping[Path, Mapping[tuple[str | None, str], int]]) -> Layout:
    """Return a set for each split of images, which are counted by split and class in each place.

    A split is named by folders inside a place, or by the name of the place (``test_real.zip``).
    """
    sizes: dict[str | None, Counter[Path]] = {}
    inside = {path for path, own in places.items() if any(split for split, _ in own)}
    for path, own in places.items():
        for (split, _), count in own.items():
            named = split if path in inside else split_of_file(path.name)
            sizes.setdefault(named, Counter())[path] += count
    layout = Layout("class folders", {}, {})
    for split, part in SPLITS.items():
        if split not in sizes:
            continue
        if part in layout.data or (split is None and len(sizes) > 1):
            layout.left_out.append(
                f"Images {split or 'of no split'} are left out: no set has them."
            )
            continue
        sources = list(sizes[split])
        chosen = len(sizes) > 1 and not inside.isdisjoint(sources)
        table = {**options, "source": [str(path) for path in sources]}
        layout.data[part] = {**table, **({"split": split} if chosen else {})}
        layout.images[part] = sizes[split].total()
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
