"""What training reads: pairs split in two, and every table that is computed or decoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gmail_align.alignment.canary import held_classes
from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.guard import HeldOut, make_held_out
from gmail_align.alignment.pair_index import (
    COLUMNS,
    ROWS,
    Numbers,
    PairFile,
    Rows,
    chosen_pairs,
    index_pairs,
)
from gmail_align.alignment.pairset import Tables, TrainingPairs, hold_out
from gmail_align.alignment.tokens import extract_tokens, read_tokens
from gmail_align.artifacts import Artifact, begin, fingerprint
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.pairs import Pair, iter_pairs
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.long_clip import first_sentence
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.features.pixels import Pixels, prepare_pixels, read_pixels
from gmail_align.features.run import extract_images, extract_patches, extract_texts
from gmail_align.features.store import Features, read_features
from gmail_align.runtime import stable_seed

_REAL = COLUMNS.index("real")
_PAIRS_AN_IMAGE = 4
"""The guard looks at up to this many held-out pairs a held-out image, on average."""


@dataclass(frozen=True)
class Task:
    """Everything that training reads."""

    tables: Tables
    train: TrainingPairs
    held: HeldOut
    real_images: int
    """Real images that are trained on."""


def prepare(
    config: AlignConfig,
    sources: dict[str, Artifact],
    encoder: GmailEncoder,
    cache: Path,
    seed: int,
) -> Task:
    """Split the pairs, and decode and embed once all that does not change."""
    pairs = sources["pairs"]
    index = index_pairs(pairs, cache / _name(pairs, "index"))
    file = PairFile.open(index.path(ROWS))
    images = np.arange(index.counts["reals"])
    held_images = hold_out(images, config.holdout, config.holdout_limit, seed)
    texts = None
    if encoder.has_texts:
        text_folder = cache / _name(pairs, "texts", encoder.base_fingerprint)
        texts = read_features(extract_texts(pairs, encoder, text_folder, route=Route.FROZEN))
    generated_ids = _distinct(row.generated_image_id for row in iter_pairs(pairs))
    generated = _pixels(sources["generated"], generated_ids, encoder, cache)
    everyone = _distinct(row.real_image_id for row in iter_pairs(pairs))
    real = _real_tables(config, sources["real"], everyone, held_images, encoder, cache)
    short = _first_sentences(config, pairs, encoder, cache)
    tokens = _token_tables(pairs, encoder, cache, short=short is not None)
    tables = Tables(generated, real.pixels, real.frozen, texts, real.patches, short, *tokens)

    def some(blocks: Iterator[Numbers]) -> TrainingPairs:
        own = PairFile.of(blocks, cache)
        numbers = np.flatnonzero(held_images)
        return TrainingPairs(
            own,
            None if len(real.pixels.ids) == len(images) else numbers,
            None if len(real.frozen.ids) == len(images) else numbers,
        )

    places = _held_places(file, held_images)
    kept = _thin(places, config.holdout_limit, seed)
    numbers = file.take(kept).astype(np.int32)
    held = make_held_out(some(iter([numbers])).take(np.arange(len(kept))), tables)
    held = _with_classes(config, held, tables, encoder, sources, chosen_pairs(pairs, kept))
    train = some(block[~held_images[block[:, _REAL]]] for block in file.blocks())
    return Task(tables, train, held, len(images) - int(held_images.sum()))


def _held_places(file: PairFile, held_images: npt.NDArray[np.bool_]) -> Rows:
    """Return which pairs are of held-out images."""
    found, start = [np.empty(0, np.int64)], 0
    for block in file.blocks():
        found.append(np.flatnonzero(held_images[block[:, _REAL]]) + start)
        start += len(block)
    return np.concatenate(found)


def _with_classes(
    config: AlignConfig,
    held: HeldOut,
    tables: Tables,
    encoder: GmailEncoder,
    sources: dict[str, Artifact],
    pairs: Sequence[Pair],
) -> HeldOut:
    """Add what is known of the held-out images' classes.

    Raises:
        ConfigError: the guard shall go by them, and nothing is known.
    """
    names = [tables.real.ids[row] for row in held.real] if tables.real is not None else []
    classes = held_classes(encoder, names, pairs, sources.get("classes"))
    if classes is None and config.guarded == "zeroshot":
        raise ConfigError(
            "select=zeroshot needs classes, and these captions name none: give --classes what the "
            "import of a class folder made, or let the guard select something else"
        )
    return replace(held, classes=classes)


def pair_ids(task: Task, places: Rows) -> list[dict[str, str]]:
    """Name the generated image, the real image and the caption of training pairs."""
    rows, tables = task.train.take(places), task.tables
    real = tables.frozen.ids if tables.frozen is not None else []
    texts = tables.texts.ids if tables.texts is not None else []
    return [
        {
            "generated_image_id": tables.generated.ids[generated],
            **({"real_image_id": real[frozen]} if frozen >= 0 else {}),
            **({"caption_id": texts[text]} if text >= 0 else {}),
        }
        for generated, frozen, text in zip(rows.generated, rows.frozen, rows.text, strict=True)
    ]


class _Real(NamedTuple):
    """Tables of real images: all of them, or the held-out ones where training reads no other."""

    pixels: Pixels
    frozen: Features
    patches: Features | None


def _real_tables(
    config: AlignConfig,
    real: Artifact,
    everyone: Sequence[str],
    held_images: npt.NDArray[np.bool_],
    encoder: GmailEncoder,
    cache: Path,
) -> _Real:
    """Return pixels, frozen features and frozen patches of real images as far as needed."""
    held = [everyone[number] for number in np.flatnonzero(held_images).tolist()]
    weights = config.weights
    every_pixel = weights.needs_real or weights.patch > 0 or config.data != "synthetic"
    pixels = _pixels(real, everyone if every_pixel else held, encoder, cache)
    wanted = everyone if weights.needs_frozen else held
    folder = cache / _name(real, "frozen", encoder.base_fingerprint, wanted)
    batch = config.micro_batch or config.batch_size
    known = pixels if list(pixels.ids) == wanted else None
    made = extract_images(
        real, encoder, Route.FROZEN, folder, ids=wanted, batch_size=batch, pixels=known
    )
    if weights.patch == 0:
        return _Real(pixels, read_features(made), None)
    folder = cache / _name(real, "patches", encoder.base_fingerprint, wanted)
    patches = extract_patches(real, encoder, folder, ids=wanted, batch_size=batch, pixels=pixels)
    return _Real(pixels, read_features(made), read_features(patches))


def _first_sentences(
    config: AlignConfig, pairs: Artifact, encoder: GmailEncoder, cache: Path
) -> Features | None:
    """Return the features of the captions' first sentences, where the text loss reads them."""
    if config.text_loss != "long_short":
        return None
    draft = begin(cache / _name(pairs, "first sentences"), "captions", {}, {"pairs": pairs})
    captions = draft.complete
    if captions is None:
        rows = {row.caption_id: row for row in iter_pairs(pairs)}
        firsts = (
            Caption(row.caption_id, first_sentence(row.text), row.real_image_id)
            for row in rows.values()
        )
        captions = draft.finish({"captions": write_captions(draft, firsts)})
    folder = cache / _name(captions, "texts", encoder.base_fingerprint)
    return read_features(extract_texts(captions, encoder, folder, route=Route.FROZEN))


def _token_tables(
    pairs: Artifact, encoder: GmailEncoder, cache: Path, *, short: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the tokens of captions and of first sentences, where the text tower is trained."""
    if not encoder.adapts_texts:
        return None, None
    lines = {row.caption_id: row.text for row in iter_pairs(pairs)}
    tables: list[Tensor | None] = []
    for texts in (list(lines.values()), [first_sentence(text) for text in lines.values()]):
        folder = cache / _name(pairs, "tokens", encoder.base_fingerprint, texts)
        tables.append(read_tokens(extract_tokens(pairs, texts, encoder, folder)))
        if not short:
            return tables[0], None
    return tables[0], tables[1]


def _pixels(images: Artifact, ids: Sequence[str], encoder: GmailEncoder, cache: Path) -> Pixels:
    preprocess = encoder.preprocess
    folder = cache / _name(images, "pixels", preprocess.fingerprint, list(ids))
    return read_pixels(prepare_pixels(images, preprocess, folder, ids=ids))


def _name(source: Artifact, *parts: object) -> str:
    """Name a cached artifact after all that it depends on."""
    return f"{source.kind}-{fingerprint([source.fingerprint, *parts])}"


def _distinct(ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(ids))


def _thin(places: Rows, images: int, seed: int) -> Rows:
    """Keep a bounded random part of the held-out pairs, in their order."""
    rng = np.random.default_rng(stable_seed(seed, "guard"))
    return np.sort(rng.permutation(places)[: images * _PAIRS_AN_IMAGE])
