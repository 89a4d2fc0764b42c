"""Pairs as numbers in a file: what a batch reads of them, whatever their number.

``pairs.jsonl`` is read once. Ids and texts are numbered in the order in which they first come, and
their names are kept with the numbers. Names lie in temporary files, and rows are mapped from where
they lie, so memory does not grow with the number of pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gmail_align.artifacts import Artifact, atomic_file, begin, read_jsonl
from gmail_align.data.captions import TEXTS, numbered_captions, write_captions
from gmail_align.data.mapped import distinct, spans, store_rows, zeros
from gmail_align.data.names import Names
from gmail_align.data.pairs import iter_pairs
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
        if column == "first":
            yield from self._first_sentences()
        else:
            yield from read_jsonl(self.artifact.path(_names_file(column)))

    def _first_sentences(self) -> Iterator[str]:
        """Yield each first sentence once; texts are numbered in the order in which they come."""
        text, first = COLUMNS.index("text"), COLUMNS.index("first")
        numbers, count = zeros(self.count("text"), np.int32), 0
        for span in spans(len(self.rows)):
            numbers[self.rows[span, text]] = self.rows[span, first]
        for line, number in zip(self.names("text"), numbers, strict=True):
            if number == count:
                yield first_sentence(line)
                count += 1

    def names_of(self, column: str, numbers: Numbers) -> Sequence[str]:
        """Return the names of these numbers of a column, in their order."""
        names = self._known.get(column)
        if names is None:
            names = self._known[column] = Names(self.names(column))
        if isinstance(numbers, range) and numbers == range(len(names)):
            return names
        parts = (names.take(np.asarray(numbers[span], np.int64)) for span in spans(len(numbers)))
        return Names(name for part in parts for name in part)

    def first_sentences(self, out: Path) -> Artifact:
        """Write the first sentences as captions whose ids are their numbers."""
        draft = begin(out, "captions", {"column": "first"}, {"pairs": self.artifact})
        if draft.complete is not None:
            return draft.complete
        rows = numbered_captions(self.names("first"))
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
    rows = (
        (pair.generated_image_id, pair.real_image_id, pair.caption_id, pair.text)
        for pair in iter_pairs(pairs)
    )
    names = dict(zip(COLUMNS, Names.columns(rows, len(COLUMNS) - 1), strict=False))
    columns = [_numbered(own, draft.path(_names_file(name))) for name, own in names.items()]
    columns.append(_numbered(Names(map(first_sentence, names["text"]))))
    count = len(names["text"])
    with atomic_file(draft.path(ROWS)) as file:
        for span in spans(count):
            file.write(np.stack([own[span] for own in columns], axis=1).data)
    counts = {
        name: int(own.max(initial=-1)) + 1 for name, own in zip(COLUMNS, columns, strict=True)
    }
    return draft.finish({"pairs": count, **counts})


def _numbered(names: Names, path: Path | None = None) -> npt.NDArray[np.int32]:
    """Number names in the order in which they first come; with a path, write each once there."""
    firsts, numbers, count = names.rows(names), zeros(len(names), np.int32), 0
    with nullcontext() if path is None else atomic_file(path) as file:
        for span in spans(len(names)):
            new = firsts[span] == np.arange(span.start, span.stop)
            own = numbers[span]
            own[new] = np.arange(count, count + np.count_nonzero(new))
            own[~new] = numbers[firsts[span][~new]]
            count += int(np.count_nonzero(new))
            if file is not None:
                for name in compress(names[span], new.tolist()):
                    file.write((json.dumps(name) + "\n").encode())
    return numbers


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
    blocks = (rows[span] for span in spans(len(rows)))
    return map_rows((block[~images[block[:, REAL]]] for block in blocks), folder)


def map_rows(blocks: Iterable[PairNumbers], folder: Path) -> PairNumbers:
    """Write rows to a nameless temporary file inside ``folder`` and map it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: PairNumbers = store_rows(blocks, np.int32, folder).reshape(-1, len(COLUMNS))
    return rows


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


def _names_file(column: str) -> str:
    return TEXTS if column == "text" else f"{column}.jsonl"
