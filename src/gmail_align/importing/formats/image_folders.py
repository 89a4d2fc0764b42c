"""Folders of images whose captions lie beside them: Urban-1k, and what lies on anyone's disk."""

from __future__ import annotations

import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from gmail_align.data.captions import is_usable
from gmail_align.data.decode import SUFFIXES
from gmail_align.data.ids import id_text, key_id, numbered
from gmail_align.data.protocols import Protocol, require_dataset
from gmail_align.errors import DataError
from gmail_align.importing.archives import open_members, open_several
from gmail_align.importing.members import Members, base_name, nothing_found, suffix
from gmail_align.importing.rows import listed_texts, table_rows
from gmail_align.importing.source import Places, Source, whole_source
from gmail_align.importing.splits import SplitChoice, choose_split, split_of_folders
from gmail_align.importing.staging import Staging
from gmail_align.importing.streams import MAX_TEXT, Inside, json_pairs, text_lines

_TABLES: Final = frozenset(
    f"{stem}.{kind}"
    for stem in ("captions", "metadata", "prompts")
    for kind in ("jsonl", "json", "csv", "tsv")
)
"""Files that may hold the captions of the images in their folder and below."""
_NAME_COLUMNS: Final = ("file_name", "filename", "image", "path", "name", "image_id", "id")
_TEXT_COLUMNS: Final = ("text", "caption", "prompt", "captions", "prompts")
_TEXT_FILES: Final = ("txt", "caption", "json")
_LAYOUT: Final = ("image", "images", "caption", "captions")
"""Folders that part images from captions, as ``image/7.jpg`` and ``caption/7.txt``."""


def urban1k(source: Places, split: SplitChoice = None, protocol: Protocol | None = None) -> Source:
    """Import Urban-1k, or any images with captions beside them: .txt files, or a table."""
    require_dataset(protocol, "urban1k")
    staging, members = Staging(), open_several(source)
    _list_images(staging, members, split, every=True)
    return whole_source(staging, members, {"format": "urban1k", "split": split or "test"})


def image_folder(place: Path, kind: Literal["real", "generated"]) -> Source:
    """List a folder, zip or tar of images, and those captions that lie beside them."""
    staging, members = Staging(), open_members(place)
    _list_images(staging, members, None, every=False)
    source = whole_source(staging, members, {"format": "files", "source": kind})
    return replace(source, record={"source": kind})


def image_names(members: Members) -> Iterator[str]:
    """Yield the files whose suffix is that of an image."""
    for name, fault in members.listing():
        if not fault and suffix(name) in SUFFIXES:
            yield name


def common_folder(names: Sequence[str]) -> str:
    """Return the folder, with its slash, that all files lie in; empty when there is none."""
    above = posixpath.commonpath([posixpath.dirname(name) for name in names]) if names else ""
    return f"{above}/" if above else ""


def _list_images(staging: Staging, members: Members, wanted: str | None, *, every: bool) -> None:
    """List images and their captions.

    Args:
        staging: Gets them.
        members: Where they are.
        wanted: The split that is chosen.
        every: Whether an image without a caption, and a caption without an image, are faults.
    """
    staging.refuse_faults(members)
    names = [name for name, fault in members.listing() if not fault]
    images = [name for name in names if suffix(name) in SUFFIXES]
    if not every:
        images.sort()  # a folder and a zip of it give the same
    advice = () if every else ("give the folder of one split",)
    split = choose_split(map(split_of_folders, images), wanted, "the source", *advice)
    every_image = images
    images = [name for name in images if split in (None, split_of_folders(name))]
    names = [name for name in names if not _is_of_another(name, split)]
    if not images:
        raise nothing_found(members, "the source does not hold an image")
    captions = _CaptionsBeside(members, names, every_image)
    start = len(common_folder([f"{_key(name)}.x" for name in images]))
    bare = []
    for name in images:
        image_id = staging.image_id(f"{_key(name)[start:]}.{suffix(name)}", name)
        texts = captions.of(name)
        if not every:
            texts = [text for text in texts if isinstance(text, str) and is_usable(text)]
        rows = [(numbered(image_id, k), text) for k, text in enumerate(texts)]
        staging.add(image_id, name, rows)
        if every and not texts:
            bare.append((image_id, name))
    if every:
        for entry, reason in captions.unused():
            if not _is_of_another(entry, split):
                staging.refuse("captions", key_id(base_name(entry)), f"{entry} {reason}")
    for image_id, name in bare:  # last, because an entry that is damaged may be the cause
        staging.refuse("captions", image_id, f"{name} does not have a caption beside it")
    staging.pass_over(
        name for name in names if suffix(name) not in SUFFIXES and not captions.read(name)
    )


def _is_of_another(name: str, split: str | None) -> bool:
    """Whether a file lies in the folder of another split than the chosen one."""
    return split is not None and split_of_folders(name) not in (None, split)


def _key(name: str) -> str:
    """Return what an image and its file of captions have in common."""
    stem = posixpath.splitext(name)[0]
    folder, _, base = stem.rpartition("/")
    outer, _, inner = folder.rpartition("/")
    return posixpath.join(outer if inner in _LAYOUT else folder, base)


def _form(name: str) -> str:
    """Return a name as it is compared where it is not there letter by letter."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def _is_table(name: str) -> bool:
    return posixpath.basename(name).lower() in _TABLES


class _CaptionsBeside:
    """The captions of images: in a table of their own folder or one above, or in a file each."""

    def __init__(self, members: Members, names: Sequence[str], images: Sequence[str]) -> None:
        self._members = members
        self._files: dict[str, list[str]] = defaultdict(list)
        self._used: set[str] = set()
        keys = {_key(name) for name in images}
        self._forms = Counter(map(_form, keys))
        self._images = Counter(map(_key, images))
        for name in names:
            if suffix(name) in _TEXT_FILES and not _is_table(name):
                self._files[self._shared(_key(name))].append(name)
        shared = set(map(self._shared, keys))
        self._alone = sorted(
            name
            for key, files in self._files.items()
            if key not in shared
            for name in files
            if suffix(name) != "json"
        )
        self._tables: dict[str, list[_Table]] = defaultdict(list)
        for name in sorted(filter(_is_table, names)):
            self._tables[posixpath.dirname(name)].append(_Table(members, name, images))

    def _shared(self, key: str) -> str:
        """Return a key in the form of its one image; of two forms of a name, each has its own."""
        form = _form(key)
        return form if self._forms[form] == 1 else key

    def of(self, name: str) -> list[Any]:
        """Return the captions of an image; what cannot be read is a DataError among them."""
        folder, blank = posixpath.dirname(name), list[Any]()
        while True:
            for texts in [table.of(name) for table in self._tables.get(folder, ())]:
                if any(map(_plain, texts)):
                    return self._once(folder, name, texts)
                blank = blank or texts
            if not folder:
                break
            folder = posixpath.dirname(folder)
        for kind in _TEXT_FILES:
            for file in self._files.get(self._shared(_key(name)), ()):
                if suffix(file) == kind and (texts := self._texts(file, name)):
                    self._used.add(file)
                    return texts
        return blank

    def _once(self, folder: str, name: str, texts: list[Any]) -> list[Any]:
        """Return an image's captions of one table, and mark other ones of other tables."""
        for table in self._tables[folder]:
            own = table.of(name)
            if own != texts and any(map(_plain, own)):
                table.pass_over(name)
        return texts

    def _texts(self, file: str, name: str) -> list[Any]:
        try:
            if self._images[_key(name)] > 1:
                raise DataError(f"{file} may describe {name} or another image: rename one of them")
            if self._members.stamp(file)[0] > MAX_TEXT:
                raise DataError(f"{file} has more than {MAX_TEXT} bytes")
            inside = Inside(file, self._members.read(file))
            if suffix(file) == "json":
                return captions_in(dict(json_pairs(inside)))
            lines = [line for _, line in text_lines(inside)]
        except DataError as error:
            return [error]
        return [one for one in lines if isinstance(one, DataError) or one.strip()] or [""]

    def read(self, name: str) -> bool:
        """Whether a file was read for captions."""
        return name in self._used or _is_table(name)

    def unused(self) -> Iterator[tuple[str, str]]:
        """Yield the files and table entries whose captions no image gets, and why."""
        yield from ((name, "has no image") for name in self._alone)
        for tables in self._tables.values():
            for table in tables:
                yield from table.unused()


class _Table:
    """The captions in one table; it names images by path below its own folder, or by file name."""

    def __init__(self, members: Members, name: str, images: Sequence[str]) -> None:
        self._name, self._start = name, len(name) - len(posixpath.basename(name))
        self._texts: dict[str, list[Any]] = defaultdict(list)
        self._reasons: dict[str, str] = {}
        self._used: set[str] = set()
        for number, row in table_rows(Inside(name, members.read(name))):
            if isinstance(row, Mapping):
                column = next((one for one in _NAME_COLUMNS if one in row), "")
                image = (id_text(row.get(column)) or "").strip() or f"row {number}"
                self._texts[posixpath.normpath(image)] += captions_in(row)
                if not column:
                    names = ", ".join(_NAME_COLUMNS)
                    self._reasons[image] = f"does not have a column of file names ({names})"
            else:
                self._texts[f"row {number}"] += []
                self._reasons[f"row {number}"] = str(row) if isinstance(row, DataError) else ""
        forms: dict[str, list[str]] = defaultdict(list)
        for own in self._texts:
            forms[_form(own)].append(own)
        self._forms = {form: few[0] for form, few in forms.items() if len(few) == 1}
        below = [image[self._start :] for image in images if image.startswith(name[: self._start])]
        self._alike = Counter(
            one for image in below for one in {_form(image), *map(_form, _short_names(image))}
        )

    def of(self, image: str) -> list[Any]:
        """Return an image's captions; another name counts where it stands for one image alone."""
        if (entry := self._entry(image)) is None:
            return []
        self._used.add(entry)
        return self._texts[entry]

    def _entry(self, image: str) -> str | None:
        own = image[self._start :]
        if own in self._texts:
            return own
        for name in map(_form, (own, *_short_names(own))):
            if self._alike[name] == 1 and name in self._forms:
                return self._forms[name]
        return None

    def pass_over(self, image: str) -> None:
        """Note that another table of the folder has captions of an image."""
        entry = self._entry(image)
        assert entry is not None, "it was found before"
        self._used.discard(entry)
        self._reasons[entry] = "is left out, as another table here has captions of that image"

    def unused(self) -> Iterator[tuple[str, str]]:
        """Yield the entries whose captions no image gets, one for each caption, and why."""
        for entry, texts in self._texts.items():
            if entry not in self._used:
                reason = self._reasons.get(entry) or "has no image"
                for _ in texts or [""]:
                    yield entry, f"in {self._name} {reason}"


def _short_names(path: str) -> tuple[str, ...]:
    """Return by what a table may name an image besides its path."""
    names = dict.fromkeys((posixpath.splitext(path)[0], posixpath.basename(path), base_name(path)))
    return tuple(name for name in names if name != path)


def captions_in(row: Mapping[str, Any]) -> list[Any]:
    """Return the captions of the first column that has one, with what is no text among them."""
    columns = [row[column] for column in _TEXT_COLUMNS if column in row]
    lists = [listed_texts(value) for value in columns]
    chosen = next((few for few in lists if any(map(_plain, few))), lists[0] if lists else [])
    return [_plain(one) if isinstance(one, str | int) else one for one in chosen]


def _plain(value: Any) -> str:
    """Return a text, or a whole number as one; empty for anything else."""
    return str(value).strip() if isinstance(value, str | int) and value is not True else ""
