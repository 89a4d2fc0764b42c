"""What training reads: pairs split in two, and every table that is computed or decoded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from gmail_align.alignment.canary import held_classes
from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.guard import HeldOut, make_held_out
from gmail_align.alignment.pairset import (
    PairRows,
    Rows,
    Tables,
    group_pairs,
    hold_out,
    locate,
)
from gmail_align.alignment.patches import extract_patches
from gmail_align.alignment.tokens import extract_tokens, read_tokens
from gmail_align.artifacts import Artifact, begin, fingerprint
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.pairs import Pair, read_pairs
from gmail_align.encoders.clip import GmailEncoder
from gmail_align.encoders.long_clip import first_sentence
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.features.pixels import Pixels, prepare_pixels, read_pixels
from gmail_align.features.run import extract_images, extract_pixels, extract_texts
from gmail_align.features.store import Features, read_features
from gmail_align.runtime import stable_seed

_PAIRS_AN_IMAGE = 4
"""The guard looks at up to this many held-out pairs a held-out image, on average."""


@dataclass(frozen=True)
class Task:
    """Everything that training reads."""

    tables: Tables
    train: PairRows
    held: HeldOut


def prepare(
    config: AlignConfig,
    sources: dict[str, Artifact],
    encoder: GmailEncoder,
    cache: Path,
    seed: int,
) -> Task:
    """Split the pairs, and decode and embed once all that does not change."""
    rows = read_pairs(sources["pairs"])
    groups, _ = group_pairs(rows)
    is_held = hold_out(groups, config.holdout, config.holdout_limit, seed)
    texts = None
    if encoder.has_texts:
        text_folder = cache / _name(sources["pairs"], "texts", encoder.base_fingerprint)
        made = extract_texts(sources["pairs"], encoder, text_folder, route=Route.FROZEN)
        texts = read_features(made)
    generated_ids = _distinct(row.generated_image_id for row in rows)
    generated = _pixels(sources["generated"], generated_ids, encoder, cache)
    real = _real_tables(config, sources["real"], rows, is_held.tolist(), encoder, cache)
    short = _first_sentences(config, sources["pairs"], encoder, cache)
    tokens: tuple[Tensor | None, Tensor | None] = (None, None)
    if encoder.adapts_texts:
        lines = {row.caption_id: row.text for row in rows}
        firsts = {name: first_sentence(text) for name, text in lines.items()}
        tokens = (
            _tokens(sources["pairs"], list(lines.values()), encoder, cache),
            _tokens(sources["pairs"], list(firsts.values()), encoder, cache) if short else None,
        )
    tables = Tables(generated, real[0], real[1], texts, real[2], short, *tokens)
    located = locate(rows, tables)
    kept = _thin(np.flatnonzero(is_held), config.holdout_limit, seed)
    held = make_held_out(located.take(kept), tables)
    real_ids = [tables.real.ids[row] for row in held.real] if tables.real is not None else []
    own = [rows[place] for place in kept]
    held = replace(held, classes=held_classes(encoder, real_ids, own, sources.get("classes")))
    if held.classes is None and config.guarded == "zeroshot":
        raise ConfigError(
            "select=zeroshot needs classes, and these captions name none: give --classes what the "
            "import of a class folder made, or let the guard select something else"
        )
    return Task(tables, located.take(np.flatnonzero(~is_held)), held)


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


def _real_tables(
    config: AlignConfig,
    real: Artifact,
    rows: Sequence[Pair],
    is_held: Sequence[bool],
    encoder: GmailEncoder,
    cache: Path,
) -> tuple[Pixels, Features, Features | None]:
    """Return pixels, frozen features and frozen patches of real images as far as needed."""
    everyone = _distinct(row.real_image_id for row in rows)
    held = _distinct(row.real_image_id for row, out in zip(rows, is_held, strict=True) if out)
    weights = config.weights
    every_pixel = weights.needs_real or weights.patch > 0 or config.data != "synthetic"
    pixels = _pixels(real, everyone if every_pixel else held, encoder, cache)
    wanted = everyone if weights.needs_frozen else held
    folder = cache / _name(real, "frozen", encoder.base_fingerprint, wanted)
    batch = config.micro_batch or config.batch_size
    if list(pixels.ids) == wanted:
        made = extract_pixels(real, pixels, encoder, Route.FROZEN, folder, batch_size=batch)
    else:
        made = extract_images(real, encoder, Route.FROZEN, folder, ids=wanted, batch_size=batch)
    if weights.patch == 0:
        return pixels, read_features(made), None
    folder = cache / _name(real, "patches", encoder.base_fingerprint, wanted)
    patches = extract_patches(real, pixels, encoder, folder, batch_size=batch)
    return pixels, read_features(made), read_features(patches)


def _first_sentences(
    config: AlignConfig, pairs: Artifact, encoder: GmailEncoder, cache: Path
) -> Features | None:
    """Return the features of the captions' first sentences, where the text loss reads them."""
    if config.text_loss != "long_short":
        return None
    draft = begin(cache / _name(pairs, "first sentences"), "captions", {}, {"pairs": pairs})
    captions = draft.complete
    if captions is None:
        rows = {row.caption_id: row for row in read_pairs(pairs)}
        firsts = (
            Caption(row.caption_id, first_sentence(row.text), row.real_image_id)
            for row in rows.values()
        )
        captions = draft.finish({"captions": write_captions(draft, firsts)})
    folder = cache / _name(captions, "texts", encoder.base_fingerprint)
    return read_features(extract_texts(captions, encoder, folder, route=Route.FROZEN))


def _tokens(pairs: Artifact, texts: list[str], encoder: GmailEncoder, cache: Path) -> Tensor:
    folder = cache / _name(pairs, "tokens", encoder.base_fingerprint, texts)
    return read_tokens(extract_tokens(pairs, texts, encoder, folder))


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
