"""Splits: folders and files named train, val or test are parts of a set, never classes of one."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from gmail_align.errors import DataError
from gmail_align.importing.members import open_folder
from gmail_align.progress import say
from gmail_align.remote import is_folder, url_of

SplitChoice = Annotated[
    str | None,
    Field(description="Split to import where folders or files are named by it: train, val, ..."),
]
ARROW: Final = "Arrow files, as save_to_disk writes them: write Parquet with Dataset.to_parquet"
"""What to do with files that are not read."""
_SPLIT: Final = re.compile(
    r"(?:(?:\d+|images?|imgs?|photos?|data|set|split)[-_. ]*)?"
    r"(train|training|trainval|trn|val|valid|validation|dev|test|testing|tst|eval|evaluation|restval)"
    r"(?:[-_. ]*(?:v?\d+|images?|imgs?|photos?|data|set|split)){0,2}"
)
_CANONICAL: Final = {
    **dict.fromkeys(("train", "training", "trainval", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}


def split_of(word: str) -> str | None:
    """Return the split that a folder is named by (``train2017`` is ``train``); None for others."""
    match = _SPLIT.fullmatch(word.lower())
    return _CANONICAL.get(match[1], match[1]) if match else None


def split_of_folders(name: str) -> str | None:
    """Return the split of the first folder of a path that is named by one."""
    return next((one for part in name.split("/")[:-1] if (one := split_of(part))), None)


def split_of_file(name: str) -> str | None:
    """Return the split that a table or shard belongs to, by its folders or its own name."""
    stem = posixpath.basename(name).partition(".")[0]
    words = [stem, *re.split(r"[-_ ]", stem)]
    own = next((one for word in (words[0], words[1], words[-1]) if (one := split_of(word))), None)
    return own or split_of_folders(name)


def choose_split(
    splits: Iterable[str | None],
    wanted: str | None,
    what: str,
    advice: str = "choose one with --split, or all",
) -> str | None:
    """Return the split to keep; None keeps everything.

    Args:
        splits: The split of every file.
        wanted: What the user chose: a split, ``all``, or nothing.
        what: The source, for the message.
        advice: What the message says to do.

    Raises:
        DataError: there are several splits and none is chosen, or the chosen one is not there.
    """
    names = sorted({split for split in splits if split})
    if wanted == "all" or (wanted is None and len(names) < 2):
        return None
    if wanted is None:
        raise DataError(
            f"{what} holds the splits {' and '.join(names)}, which are not one set: {advice}"
        )
    chosen = split_of(wanted)
    if chosen not in names:
        have = f"it holds {', '.join(names)}" if names else "its folders and files name none"
        raise DataError(f"{what} does not hold the split {wanted!r}: {have}")
    return chosen


def files_in(
    places: Sequence[Path], suffixes: tuple[str, ...], split: str | None = None
) -> list[Path]:
    """Return the files themselves, and those in folders that have one of the suffixes, sorted.

    Hidden files are passed over. Where the files of a folder belong to several splits, one is kept.

    Raises:
        DataError: a place does not exist, there is no such file, or no split is chosen.
    """
    files: list[Path] = []
    for place in places:
        url = url_of(place)
        if url is not None and not is_folder(url):
            files.append(place)
        elif url is not None or os.path.isdir(
            place
        ):  # unlike Path.is_dir, it does not raise for a name too long
            files += _in_folder(place, suffixes, split)
        elif os.path.exists(place):
            files.append(place)
        else:
            raise DataError(f"there is no file or folder at {place}")
    if not files:
        names = [name for name, _ in open_folder(places[0]).listing()]
        more = f", but {ARROW}" if any(name.endswith(".arrow") for name in names) else ""
        ends = " or ".join(suffixes)
        raise DataError(f"{places[0]} does not hold a file that ends in {ends}{more}")
    return files


def _in_folder(place: Path, suffixes: tuple[str, ...], split: str | None) -> list[Path]:
    names = []
    for name, fault in open_folder(place).listing():
        if name.lower().endswith(suffixes):
            names.append(name)
        elif fault:
            say(f"{place}: {name} {fault}")
    splits = {name: split_of_file(name) for name in names}
    kept = choose_split(splits.values(), split, str(place)) if names else None
    return [place / name for name in names if kept in (None, splits[name])]


def files_of_split(paths: Sequence[Path], split: str) -> list[Path]:
    """Keep the files that are named by the split, where any is named by one (as on the hub).

    Raises:
        DataError: the files are those of other splits.
    """
    splits = {path: split_of_file(path.name) for path in paths}
    own = [path for path in paths if splits[path] == split_of(split)]
    if not own and any(splits.values()):
        raise DataError(f"none of the {len(paths)} files is of the split {split!r}: name another")
    return own or list(paths)
