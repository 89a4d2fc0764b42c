"""What training reads: pairs split in two, and every table that is computed or decoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.embedding import Batch
from gmail_align.alignment.held_out_classes import HeldOutClasses, find_classes
from gmail_align.alignment.pair_index import (
    COLUMNS,
    GROUPS,
    REAL,
    Numbers,
    PairIndex,
    PairNumbers,
    hold_out,
    index_pairs,
    without_images,
)
from gmail_align.alignment.terms import needed_features, trains_real_head
from gmail_align.alignment.tokens import extract_tokens, read_tokens
from gmail_align.artifacts import Artifact
from gmail_align.data.mapped import count_up, marked, spans, store_rows
from gmail_align.data.names import Names
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.cache import Cache
from gmail_align.features.decoded_rows import DecodedRows
from gmail_align.features.run import TEXTS_CUT
from gmail_align.features.store import open_features
from gmail_align.runtime import stable_seed

_PAIRS_AN_IMAGE = 4
"""The guard looks at up to this many held-out pairs a held-out image, on average."""


@dataclass(frozen=True)
class Table:
    """Rows that were computed or decoded once, and which pair reads which."""

    array: Tensor | DecodedRows
    """Mapped from a file, or decoded when read: memory does not grow with it."""
    column: str
    """The column of pairs whose number says the row."""
    rows: npt.NDArray[np.int64] | None = None
    """Shape (numbers,): the row of each number, -1 where there is none; None: they are equal."""

    def take(self, pairs: PairNumbers) -> Tensor:
        """Copy the rows of these pairs."""
        return self.array[self.rows_of(pairs[:, COLUMNS.index(self.column)])]

    def rows_of(self, numbers: npt.NDArray[np.integer[Any]]) -> Int64[Tensor, " k"]:
        """Return the rows of these numbers of the column."""
        rows = numbers.astype(np.int64) if self.rows is None else self.rows[numbers]
        assert rows.min(initial=0) >= 0, f"a pair reads a {self.column} row that is not here"
        return torch.from_numpy(rows)

    def every_row_of(self, numbers: npt.NDArray[np.integer[Any]]) -> Int64[Tensor, " k"]:
        """Return the rows of any number of numbers, mapped from a file."""
        parts = (self.rows_of(numbers[span]).numpy() for span in spans(len(numbers)))
        return torch.from_numpy(store_rows(parts, np.int64))


@dataclass(frozen=True)
class Tables:
    """All tables, by the feature that their rows are or become."""

    inputs: Mapping[str, Table]
    """What goes through the encoder: pixels of ``generated`` and ``real`` images (``real_head``
    too where Eq. 1 reads real ones by that route), and tokens of ``texts`` and ``short`` ones where
    the text tower is trained."""
    known: Mapping[str, Table]
    """What is frozen: ``frozen``, ``frozen_patches``, ``texts`` and ``short``."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What the manifest says of them."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out part: n pairs of m real images."""

    pairs: PairNumbers
    """Shape (n, 5)."""
    first: npt.NDArray[np.int64]
    """Shape (m,): the first pair of each real image."""
    image_of: npt.NDArray[np.int64]
    """Shape (n,): which of the m real images a pair belongs to."""
    tables: Tables
    classes: HeldOutClasses | None = None
    """Where class names are known."""
    learnt: PairNumbers | None = None
    """Shape (k, 5): some of the training pairs, where the guard selects by transfer and classes are
    known; a probe learns from their generated images."""

    @property
    def images(self) -> PairNumbers:
        """Shape (m, 5): one pair of each real image."""
        return self.pairs[self.first]


@dataclass(frozen=True)
class Task:
    """Everything that training reads."""

    index: PairIndex
    train: PairNumbers
    """Shape (pairs, 5), mapped from a file."""
    held: HeldOut
    real_images: int
    """Real images that are trained on."""

    @property
    def tables(self) -> Tables:
        """Where batches are copied from."""
        return self.held.tables


@dataclass(frozen=True)
class BatchRequest:
    """What of a batch is copied out of the tables."""

    features: frozenset[str]
    """Names of the features that the loss reads."""
    part: slice = field(default_factory=lambda: slice(None))
    """The pairs whose images this process embeds."""
    replaced: npt.NDArray[np.bool_] | None = None
    """Shape (b,): pairs that show their real image where the generated one would be."""
    pinned: bool = False
    """Whether the copies lie in memory that a GPU reads directly."""


def prepare(
    config: AlignConfig,
    sources: Mapping[str, Artifact],
    encoder: GmailEncoder,
    cache: Cache,
    seed: int,
) -> Task:
    """Split the pairs, and decode and embed once all that does not change.

    Raises:
        ConfigError: the guard selects by classes, and none are known.
        DataError: there are too few real images, or a pair's image is missing.
    """
    pairs = sources["pairs"]
    index = PairIndex(cache.made(pairs, "index", lambda folder: index_pairs(pairs, folder)))
    images = count_up(index.count("real"))
    held_images = hold_out(images, config.holdout, config.holdout_limit, seed)
    held_numbers = marked(held_images[span] for span in spans(len(images)))
    tables = TableMaker(config, index, encoder, cache).open(sources, held_numbers)
    places = marked(held_images[index.rows[span, REAL]] for span in spans(len(index.rows)))
    held = _held_out(index.rows[_thin(places, config.holdout_limit, seed)], tables)
    train = without_images(index.rows, held_images, cache.folder)
    if config.guarded == "transfer":
        held = replace(held, learnt=some_of(train, config.holdout_limit))
    classes = _known_classes(config, index, held, encoder, sources.get("classes"))
    if classes is None:
        held = replace(held, learnt=None)
    return Task(index, train, replace(held, classes=classes), len(images) - int(held_images.sum()))


def some_of(pairs: PairNumbers, limit: int) -> PairNumbers:
    """Return at most ``limit`` pairs, evenly apart."""
    return np.asarray(pairs[:: max(1, -(-len(pairs) // limit))])


def gather(tables: Tables, pairs: PairNumbers, wanted: BatchRequest) -> Batch:
    """Copy the rows of a batch of pairs out of the tables."""
    own = pairs[wanted.part]
    inputs = {n: table.take(own) for n, table in tables.inputs.items() if n in wanted.features}
    if wanted.replaced is not None:
        chosen = wanted.replaced[wanted.part]
        inputs["generated"][torch.from_numpy(chosen)] = tables.inputs["real"].take(own[chosen])
    names = wanted.features - inputs.keys()
    known = {name: table.take(pairs) for name, table in tables.known.items() if name in names}
    batch = Batch(inputs, known, groups_of(pairs))
    return batch.pinned() if wanted.pinned else batch


def groups_of(pairs: PairNumbers) -> Tensor:
    """Return the numbers of each pair's real image, text and first sentence, shape (n, 3)."""
    return torch.from_numpy(pairs[:, GROUPS].astype(np.int64))


def pair_ids(task: Task, places: npt.NDArray[np.int64]) -> list[dict[str, str]]:
    """Name the generated image, the real image and the caption of training pairs."""
    keys = ("generated_image_id", "real_image_id", "caption_id")
    names = [task.index.names_of(c, task.train[places, n]) for n, c in enumerate(COLUMNS[:3])]
    return [dict(zip(keys, row, strict=True)) for row in zip(*names, strict=True)]


def _held_out(pairs: PairNumbers, tables: Tables) -> HeldOut:
    _, first, image_of = np.unique(pairs[:, REAL], return_index=True, return_inverse=True)
    return HeldOut(pairs, first, image_of.reshape(-1).astype(np.int64), tables)


class TableMaker:
    """Makes the tables that training and the guard read, once, in a cache."""

    def __init__(
        self, config: AlignConfig, index: PairIndex, encoder: GmailEncoder, cache: Cache
    ) -> None:
        self.config, self.index, self.encoder, self.cache = config, index, encoder, cache
        self.needs = needed_features(config)
        self.batch_size = config.micro_batch or config.batch_size

    def open(self, sources: Mapping[str, Artifact], held: Numbers) -> Tables:
        """Decode and embed what is needed: only held-out real images where no other is trained on.

        Args:
            sources: Images, by ``real`` and ``generated``.
            held: Numbers of the held-out real images.
        """
        real, every = sources["real"], range(self.index.count("real"))
        pixels = trains_real_head(self.config) or self.config.data != "synthetic"
        generated = range(self.index.count("generated"))
        inputs = {
            "generated": self._pixels(sources["generated"], "generated", generated),
            "real": self._pixels(real, "real", every if pixels else held),
        }
        if "real_head" in self.needs:
            inputs["real_head"] = inputs["real"]
        targets = self.needs & {"frozen", "frozen_patches"}
        needed = every if targets or self.config.beats_shift else held
        known = {"frozen": self.frozen(real, "real", needed)}
        if "frozen_patches" in self.needs:
            known["frozen_patches"] = self.frozen(real, "real", needed, patches=True)
        cut = self._texts(inputs, known) if self.encoder.has_texts else 0
        return Tables(inputs, known, {TEXTS_CUT: cut} if cut else {})

    def _texts(self, inputs: dict[str, Table], known: dict[str, Table]) -> int:
        """Add the frozen features of texts and, where the text tower is trained, their tokens.

        Returns:
            Texts that are longer than the text tower reads.
        """
        columns, cut = {"texts": "text"}, 0
        if self.config.text_loss == "long_short":
            columns["short"] = "first"
        for name, column in columns.items():
            texts = self._captions(column)
            made = self.cache.text_features(texts, self.encoder)
            cut = max(cut, made.manifest.get("notes", {}).get(TEXTS_CUT, 0))
            known[name] = Table(open_features(made).array, column)
            if self.encoder.adapts_texts:
                inputs[name] = Table(read_tokens(self._tokens(texts)), column)
        return cut

    def _tokens(self, captions: Artifact) -> Artifact:
        return self.cache.made(
            captions,
            ["tokens", self.encoder.base_fingerprint],
            lambda folder: extract_tokens(captions, self.encoder, folder),
        )

    def _captions(self, column: str) -> Artifact:
        """Return what holds the texts of a column: of whole captions, the index itself."""
        if column == "text":
            return self.index.artifact
        return self.cache.made(self.index.artifact, column, self.index.first_sentences)

    def _pixels(self, images: Artifact, column: str, numbers: Numbers) -> Table:
        ids = self.index.names_of(column, numbers)
        pixels = self.cache.pixels(images, self.encoder.preprocess, ids)
        rows = self._rows(column, pixels.ids, numbers, images)
        return Table(pixels.array, column, rows)

    def frozen(
        self, images: Artifact, column: str, numbers: Numbers, *, patches: bool = False
    ) -> Table:
        """Embed images by the frozen route.

        Args:
            images: The image store.
            column: ``real`` or ``generated``.
            numbers: The numbers of the images that are needed.
            patches: Whether means of patch tokens are wanted instead of features.
        """
        ids = self.index.names_of(column, numbers)
        features = open_features(
            self.cache.image_features(
                images, self.encoder, ids, patches=patches, batch_size=self.batch_size
            )
        )
        return Table(features.array, column, self._rows(column, features.ids, numbers, images))

    def _rows(
        self, column: str, stored: Sequence[str], needed: Numbers, images: Artifact
    ) -> npt.NDArray[np.int64]:
        every = self.index.names_of(column, range(self.index.count(column)))
        rows = Names.of(stored).rows(every)
        lost = marked(rows[span] < 0 for span in spans(len(rows)))
        missing = np.intersect1d(needed, lost) if len(lost) else lost
        if len(missing):
            raise DataError(
                f"{len(missing)} images of the pairs are not in {images.folder}, the first of them "
                f"{self.index.names_of(column, missing[:1])[0]}: pass the images that were paired"
            )
        return rows


def _known_classes(
    config: AlignConfig,
    index: PairIndex,
    held: HeldOut,
    encoder: GmailEncoder,
    artifact: Artifact | None,
) -> HeldOutClasses | None:
    images = list(index.names_of("real", held.images[:, REAL]))
    texts = index.names_of("text", held.pairs[:, COLUMNS.index("text")])
    captions = [(images[row], text) for row, text in zip(held.image_of, texts, strict=True)]
    if held.learnt is not None:
        others = index.names_of("real", held.learnt[:, REAL])
        texts = index.names_of("text", held.learnt[:, COLUMNS.index("text")])
        captions += zip(others, texts, strict=True)
        images += others
    classes = find_classes(encoder, images, captions, artifact)
    if classes is not None and held.learnt is not None:
        classes = classes.of_first(len(held.first))
    if config.guarded == "zeroshot" and (classes is None or classes.features is None):
        raise ConfigError(
            "select=zeroshot needs classes, but these captions do not name any: pass --classes "
            "with what the import of a class folder made, or select something else"
        )
    return classes


def _thin(places: npt.NDArray[np.int64], images: int, seed: int) -> npt.NDArray[np.int64]:
    """Keep a bounded random part of the held-out pairs, in their order."""
    rng = np.random.default_rng(stable_seed(seed, "guard"))
    return np.sort(rng.permutation(places)[: images * _PAIRS_AN_IMAGE])
