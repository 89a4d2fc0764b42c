"""The stage: pairs, real and generated images and a CLIP in, an aligned encoder out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.guard import HeldOut, guard_metrics, make_held_out
from gmail_align.alignment.pairset import (
    PairRows,
    Rows,
    Tables,
    gather,
    group_pairs,
    hold_out,
    locate,
)
from gmail_align.alignment.patches import extract_patches
from gmail_align.alignment.terms import loss_terms
from gmail_align.artifacts import Artifact, Draft, begin, fingerprint
from gmail_align.data.batches import Batches
from gmail_align.data.pairs import Pair, read_pairs
from gmail_align.encoders.clip import GmailEncoder
from gmail_align.encoders.folder import find_folder, folder_fingerprint
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError
from gmail_align.features.pixels import Pixels, prepare_pixels, read_pixels
from gmail_align.features.prefetch import prefetch
from gmail_align.features.run import extract_images, extract_pixels, extract_texts
from gmail_align.features.store import Features, read_features
from gmail_align.progress import say
from gmail_align.runtime import resolve_device, stable_seed
from gmail_align.training.loop import CHECKPOINT, FitReport, fit

LOG_SCALE = "log_scale"
"""Name of the learned ``ln(1 / temperature)`` in checkpoints; it is no part of the encoder."""
_WORK = "work"
_PAIRS_AN_IMAGE = 4
"""The guard looks at up to this many held-out pairs a held-out image, on average."""


@dataclass(frozen=True)
class _Task:
    """Everything that training reads."""

    tables: Tables
    train: PairRows
    held: HeldOut


def align(
    config: AlignConfig,
    pairs: Artifact,
    real: Artifact,
    generated: Artifact,
    base: Path,
    out: Path,
    *,
    seed: int = 0,
    cache: Path | None = None,
) -> Artifact:
    """Align generated images to the frozen features of real ones (Sec. 3); an ``encoder`` artifact.

    A part of the real images is held out with all their pairs, and the guard keeps the step that
    does best on them. When that is step 0, the encoder says ``applied: false`` and is the plain
    CLIP by every route. A killed run goes on from its last checkpoint and ends with the same bytes.

    Args:
        config: Terms, adapter and optimisation.
        pairs: Which generated image belongs to which real one.
        real: The real images.
        generated: The generated images.
        base: Folder (or hub id) of a Hugging Face CLIP.
        out: Folder of the encoder.
        seed: Seed of the adapter, the held-out part and the batches.
        cache: Where decoded pixels and frozen features are kept, to be shared by runs on the same
            images; a folder inside ``out`` that is removed at the end when None.

    Raises:
        ConfigError: every weight is 0.
        DataError: too few real images, or a pair without its images.
        ModelError: the base is no CLIP, or the adapter's targets do not fit.
        TrainingError: the loss is not finite.
    """
    if not any(config.weights.model_dump().values()):
        raise ConfigError("every weight of the alignment is 0: give one term a weight")
    folder = find_folder(base)
    identity = config.model_dump(mode="json", exclude={"device"})
    sources = {"pairs": pairs, "real": real, "generated": generated}
    draft = begin(out, "encoder", identity, {**sources, "base": folder_fingerprint(folder)}, seed)
    if draft.complete is not None:
        return draft.complete
    encoder = GmailEncoder.from_clip(folder, config.lora, dual_heads=config.dual_heads, seed=seed)
    encoder.to(resolve_device(config.device))
    task = _prepare(config, sources, encoder, cache or out / _WORK, seed)
    report = _fit(encoder, task, config, out, seed)
    encoder.best_step, encoder.applied = report.best_step, report.best_step > 0
    encoder.save(out)
    draft.path(CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / _WORK, ignore_errors=True)
    return _finish(draft, task, report, config)


def _finish(draft: Draft, task: _Task, report: FitReport, config: AlignConfig) -> Artifact:
    """Write the manifest: what was trained on, and what the guard kept."""
    kept = next(row for row in report.scores if row["step"] == report.best_step)
    notes: dict[str, Any] = {"guard": {"start": report.scores[0], "kept": kept}}
    if report.best_step == 0:
        notes["message"] = _not_applied(config)
        say(notes["message"])
    counts = {
        "pairs": len(task.train),
        "real_images": len(np.unique(task.train.image_group)),
        "held_out_pairs": len(task.held.generated),
        "held_out_real_images": len(task.held.real),
    }
    best = report.best_step
    return draft.finish(counts, best_step=best, applied=best > 0, **notes)


def _not_applied(config: AlignConfig) -> str:
    return (
        f"no step lowered the held-out {config.guarded} loss, so alignment is not applied: the "
        "encoder is the plain CLIP; try a lower rate, more pairs or other weights"
    )


def _prepare(
    config: AlignConfig,
    sources: dict[str, Artifact],
    encoder: GmailEncoder,
    cache: Path,
    seed: int,
) -> _Task:
    """Split the pairs, and decode and embed once all that does not change."""
    rows = read_pairs(sources["pairs"])
    groups, _ = group_pairs(rows)
    is_held = hold_out(groups, config.holdout, config.holdout_limit, seed)
    text_folder = cache / _name(sources["pairs"], "texts", encoder.base_fingerprint)
    texts = read_features(extract_texts(sources["pairs"], encoder, text_folder))
    generated_ids = _distinct(row.generated_image_id for row in rows)
    generated = _pixels(sources["generated"], generated_ids, encoder, cache)
    real = _real_tables(config, sources["real"], rows, is_held.tolist(), encoder, cache)
    tables = Tables(generated, real[0], real[1], texts, real[2])
    located = locate(rows, tables)
    kept = _thin(np.flatnonzero(is_held), config.holdout_limit, seed)
    held = make_held_out(located.take(kept), tables)
    return _Task(tables, located.take(np.flatnonzero(~is_held)), held)


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
    every_pixel = weights.needs_real or weights.patch > 0
    pixels = _pixels(real, everyone if every_pixel else held, encoder, cache)
    wanted = everyone if weights.needs_frozen else held
    folder = cache / _name(real, "frozen", encoder.base_fingerprint, wanted)
    batch = config.batch_size
    if list(pixels.ids) == wanted:
        made = extract_pixels(real, pixels, encoder, Route.FROZEN, folder, batch_size=batch)
    else:
        made = extract_images(real, encoder, Route.FROZEN, folder, ids=wanted, batch_size=batch)
    if weights.patch == 0:
        return pixels, read_features(made), None
    folder = cache / _name(real, "patches", encoder.base_fingerprint, wanted)
    patches = extract_patches(real, pixels, encoder, folder, batch_size=batch)
    return pixels, read_features(made), read_features(patches)


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


def _fit(
    encoder: GmailEncoder, task: _Task, config: AlignConfig, folder: Path, seed: int
) -> FitReport:
    weights = config.weights
    batches = Batches(task.train.image_group, config.batch_size, stable_seed(seed, "batches"))
    parameters = dict(encoder.trainable(real_head=weights.needs_real))
    learned = []
    if config.learn_temperature:
        start = torch.tensor(-math.log(config.temperature), device=encoder.device)
        learned.append(parameters.setdefault(LOG_SCALE, nn.Parameter(start)))

    def load(step: int) -> Any:
        rows = task.train.take(batches.indices(step))
        return gather(task.tables, rows, real=weights.needs_real, frozen=weights.needs_frozen)

    with prefetch(load, config.optim.steps) as fetch:

        def loss(step: int) -> dict[str, Tensor]:
            return loss_terms(encoder, fetch(step).to(encoder.device), config, *learned)

        return fit(
            parameters,
            loss,
            config.optim,
            seed=seed,
            folder=folder,
            evaluate=lambda: guard_metrics(encoder, task.held, task.tables, config),
            label="alignment",
        )
