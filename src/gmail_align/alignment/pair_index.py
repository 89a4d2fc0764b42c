"""Pairs as numbers in a file: what a batch reads of them, whatever their number.

``pairs.jsonl`` is read once. Ids and texts are numbered in the order in which they first come, and
their names are kept with the numbers. Numbering goes through a database in a temporary file and
rows are mapped from where they lie, so memory does not grow with the number of pairs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gmail_align.artifacts import Artifact, atomic_file, begin, read_jsonl
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.mapped import distinct, spans, store_rows
from gmail_align.data.names import Names
from gmail_align.data.pairs import iter_pairs
from gmail_align.data.unique import temporary_database
from gmail_align.errors import DataError
from gmail_align.runtime import stable_seed

PairNumbers = npt.NDArray[np.int32]
"""Shape (n, 5): one row of :data:`COLUMNS` for each pair."""
Places = npt.NDArray[np.integer[Any]]
Numbers = Places | range
"""Numbers of a column of pairs; a range stands for many without holding them."""

COLUMNS: Final = ("generated", "real", "caption", "text", "first")
"""Numbers of the generated image, the real image, the caption, its text and its first sentence."""
REAL: Final = COLUMNS.index("real")
GROUPS: Final = [COLUMNS.index(name) for name in ("real", "text", "first")]
"""Columns of what pairs can share: pairs that do are not negatives of each other."""
ROWS: Final = "rows.i32"
_BLOCK: Final = 65_536
_CACHE: Final = 2_048
"""KiB of the database that are kept in memory."""
_LEAST_IMAGES: Final = 4


class PairIndex:
    """The pairs of a ``pair-index`` artifact, and the names behind their numbers."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        rows = np.memmap(artifact.path(ROWS), np.int32, "r").reshape(-1, len(COLUMNS))
        self.rows: PairNumbers = rows.view(np.ndarray)
        """All pairs, mapped from the file."""
        self._known: dict[str, Names] = {}

    def count(self, column: str) -> int:
        """Return how many different things a column holds."""
        return self.artifact.counts[column]

    def names(self, column: str) -> Iterator[str]:
        """Yield the ids, texts or sentences of a column, by ascending number."""
        return read_jsonl(self.artifact.path(_names_file(column)))

    def names_of(self, column: str, numbers: Numbers) -> Sequence[str]:
        """Return the names of these numbers of a column, in their order."""
        names = self._known.get(column)
        if names is None:
            names = self._known[column] = Names(self.names(column))
        if isinstance(numbers, range) and numbers == range(len(names)):
            return names
        parts = (names.take(np.asarray(numbers[span])) for span in spans(len(numbers)))
        return Names(name for part in parts for name in part)

    def texts(self, column: str, out: Path) -> Artifact:
        """Write the distinct texts of a column as captions whose ids are their numbers.

        Args:
            column: ``text`` or ``first``.
            out: Folder of the ``captions`` artifact.
        """
        draft = begin(out, "captions", {"column": column}, {"pairs": self.artifact})
        if draft.complete is not None:
            return draft.complete
        rows = (Caption(str(n), text, str(n)) for n, text in enumerate(self.names(column)))
        return draft.finish({"captions": write_captions(draft, rows)})


def index_pairs(pairs: Artifact, out: Path) -> Artifact:
    """Number what pairs are made of; an artifact of kind ``pair-index``.

    Its counts name how many pairs, and how many different things of each column, there are.

    Raises:
        ArtifactError: the artifact does not hold pairs, or its file is damaged.
    """
    draft = begin(out, "pair-index", {"columns": list(COLUMNS)}, {"pairs": pairs})
    if draft.complete is not None:
        return draft.complete
    count = 0
    with closing(_Numbering()) as numbering, ExitStack() as stack:
        rows = stack.enter_context(atomic_file(draft.path(ROWS)))
        files = [stack.enter_context(atomic_file(draft.path(_names_file(c)))) for c in COLUMNS]
        for pair in iter_pairs(pairs):
            names = (
                pair.generated_image_id,
                pair.real_image_id,
                pair.caption_id,
                pair.text,
                first_sentence(pair.text),
            )
            numbers = []
            for column, name, file in zip(COLUMNS, names, files, strict=True):
                number, new = numbering.number(column, name)
                numbers.append(number)
                if new:
                    file.write((json.dumps(name) + "\n").encode())
            rows.write(np.array(numbers, np.int32).data)
            count += 1
    return draft.finish({"pairs": count, **numbering.counts})


def first_sentence(text: str) -> str:
    """Return a long caption's first sentence, which stands for its short caption."""
    return text.split(". ")[0] or text


def without_images(rows: PairNumbers, images: npt.NDArray[np.bool_], folder: Path) -> PairNumbers:
    """Return the pairs of images that are not marked, in a temporary file that is mapped.

    Args:
        rows: All pairs.
        images: Shape (images,): which real images are left out.
        folder: Where the file lies; it has no name there.
    """

    def blocks() -> Iterator[PairNumbers]:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            yield block[~images[block[:, REAL]]]

    return map_rows(blocks(), folder)


def map_rows(blocks: Iterable[PairNumbers], folder: Path) -> PairNumbers:
    """Write rows to a nameless temporary file inside ``folder`` and map it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=np.int32).data)
        file.flush()
        mapped: PairNumbers = np.memmap(file, np.int32, "r").view(np.ndarray)
    return mapped.reshape(-1, len(COLUMNS))


def hold_out(groups: Places, share: float, limit: int, seed: int) -> npt.NDArray[np.bool_]:
    """Mark the pairs of a random share of the real images, at least 2 and at most half of them.

    Args:
        groups: Shape (n,): the real image of each pair.
        share: Share of the real images.
        limit: Most real images.
        seed: Seed of the choice.

    Returns:
        Shape (n,); an image has all its pairs marked or none.

    Raises:
        DataError: there are fewer than 4 real images.
    """
    images = distinct(groups)
    if len(images) < _LEAST_IMAGES:
        raise DataError(
            f"the pairs hold {len(images)} real images: training needs at least {_LEAST_IMAGES}, "
            "two of them held out"
        )
    count = min(max(2, round(share * len(images))), limit, len(images) // 2)
    np.random.default_rng(stable_seed(seed, "hold out")).shuffle(images)
    held = np.sort(images[:count])
    parts = (np.isin(groups[span], held) for span in spans(len(groups)))
    return store_rows(parts, np.bool_)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()


def _names_file(column: str) -> str:
    return f"{column}.jsonl"


class _Numbering:
    """Numbers for names of several kinds, by their hashes."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COLUMNS, 0)
        self._database = temporary_database()
        self._database.execute(f"PRAGMA cache_size=-{_CACHE}").close()
        for kind in COLUMNS:
            columns = "(name BLOB PRIMARY KEY, number INTEGER)"
            self._database.execute(f"CREATE TABLE {kind} {columns} WITHOUT ROWID").close()

    def number(self, kind: str, name: str) -> tuple[int, bool]:
        """Return the number of a name, and whether it is new; new ones get the next number."""
        key = _hash(name)
        row: Sequence[int] | None = self._database.execute(
            f"SELECT number FROM {kind} WHERE name = ?", (key,)
        ).fetchone()
        if row is not None:
            return row[0], False
        number = self.counts[kind]
        self._database.execute(f"INSERT INTO {kind} VALUES (?, ?)", (key, number)).close()
        self.counts[kind] += 1
        return number, True

    def close(self) -> None:
        """Remove the database."""
        self._database.close()
