"""The stage: pairs, real and generated images and a CLIP in, an aligned encoder out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from gmail_align.alignment.config import AlignConfig
from gmail_align.alignment.embedding import (
    Batch,
    learned_temperature,
    loss_terms,
    piecewise_terms,
)
from gmail_align.alignment.guard import Guard
from gmail_align.alignment.interpolation import choose_strength, put
from gmail_align.alignment.pair_index import COLUMNS, REAL
from gmail_align.alignment.task import BatchRequest, TableMaker, Task, gather, pair_ids, prepare
from gmail_align.alignment.terms import needed_features, trains_real_head
from gmail_align.alignment.training_free import MAPS, Moments, set_generated_head, settings_of
from gmail_align.alignment.verdict import moved, verdict
from gmail_align.artifacts import MANIFEST, Artifact, Draft, begin, load, write_json
from gmail_align.data.batches import Batches
from gmail_align.data.mapped import distinct
from gmail_align.encoders.config import EncoderLayout
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.folder import find_folder, folder_fingerprint
from gmail_align.encoders.route import Route
from gmail_align.errors import ConfigError, TrainingError
from gmail_align.features.cache import Cache
from gmail_align.features.rows import prefetch
from gmail_align.progress import say, set_quiet
from gmail_align.runtime import resolve_device, stable_seed
from gmail_align.training.config import OptimConfig
from gmail_align.training.distributed import ranks
from gmail_align.training.loop import CHECKPOINT, FitReport, PiecewiseLoss, fit, pairs_rate

LOG_SCALE = "log_scale"
"""Name of the learned ``ln(1 / temperature)`` in checkpoints; the encoder does not have it."""
BROKEN = "broken_batch.json"
"""Where the pairs of a batch that broke the training are named."""
WORK = "work"
"""Folder inside the encoder's for what is computed once, removed at the end."""


class Sources(NamedTuple):
    """What an alignment learns from."""

    pairs: Artifact
    """Which generated image belongs to which real one."""
    real: Artifact
    """The real images."""
    generated: Artifact
    """The generated images."""
    classes: Artifact | None = None
    """Classes of the real images, for the guard's zero-shot accuracy; when None, those that the
    captions name, if they do."""


def align(
    config: AlignConfig,
    sources: Sources,
    base: Path,
    out: Path,
    *,
    seed: int = 0,
    cache: Path | None = None,
    cache_limit: int | None = None,
) -> Artifact:
    """Align generated images to the frozen features of real ones (Sec. 3); an ``encoder`` artifact.

    A part of the real images is held out, and the guard keeps the step that does best on them. When
    that is step 0, the encoder says ``applied: false`` and is the plain CLIP by every route. A
    killed run goes on from its last checkpoint and ends with the same bytes.

    Args:
        config: Terms, adapter and optimisation.
        sources: Pairs and images.
        base: Folder (or hub id) of a Hugging Face CLIP.
        out: Folder of the encoder.
        seed: Seed of the adapter, the held-out part and the batches.
        cache: Where decoded pixels and frozen features are kept, to be shared by runs on the same
            images; a folder inside ``out`` that is removed at the end when None.
        cache_limit: Bytes of decoded pixels of one image store that may be kept; None is any
            number.

    Raises:
        ConfigError: every weight is 0.
        DataError: too few real images, or a pair without its images.
        ModelError: the base cannot be used, or the adapter's targets do not fit.
        TrainingError: the loss is not finite.
    """
    _require_training(config, sources)
    folder = find_folder(base)
    identity = config.model_dump(mode="json", exclude={"device"})
    given = {name: one for name, one in sources._asdict().items() if one is not None}
    inputs: dict[str, Artifact | str] = {**given, "base": folder_fingerprint(folder)}
    here = ranks()
    if not here.first:
        set_quiet(True)  # one process speaks for all
    draft = None
    if here.first or (out / MANIFEST).exists():
        draft = begin(out, "encoder", identity, inputs, seed)
        if draft.complete is not None:
            return draft.complete
    here.wait()
    settings = config if config.method == "gmail" else settings_of(config)
    encoder = _untrained(settings, folder, seed)
    kept = Cache(cache or out / WORK, cache_limit)
    task = here.first_alone(lambda: prepare(settings, given, encoder, kept, seed))
    if config.method == "gmail":
        notes = _Training(encoder, task, config, seed).run(out)
    else:
        tables = TableMaker(settings, task.index, encoder, kept)
        notes = _fit_map(encoder, task, settings, tables, sources.generated)
    if draft is not None:
        _finish(draft, encoder, task, notes)
    here.wait()
    return load(out)


def _require_training(config: AlignConfig, sources: Sources) -> None:
    """Refuse settings that train nothing, or that read few pairs far too often by default."""
    if not any(config.weights.model_dump().values()):
        raise ConfigError("every weight of the alignment is 0: give one term a weight")
    if config.method == "gmail":
        pairs = sources.pairs.counts.get("pairs", 0)
        config.optim.require_chosen(config.batch_size, pairs, "pairs")


def _finish(draft: Draft, encoder: GmailEncoder, task: Task, notes: dict[str, Any]) -> None:
    """Save the encoder, clear up and write the manifest."""
    encoder.save(draft.folder)
    draft.path(CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(draft.path(WORK), ignore_errors=True)
    draft.finish(_counts(task), **notes, **task.tables.notes)


def _untrained(config: AlignConfig, folder: Path, seed: int) -> GmailEncoder:
    """Build the encoder that the settings ask for, where they want it."""
    layout = None if config.encoder == EncoderLayout() else config.encoder
    encoder = GmailEncoder.from_clip(
        folder, config.lora, dual_heads=config.dual_heads, seed=seed, layout=layout
    )
    _check(config, encoder)
    return encoder.to(resolve_device(config.device))


def _check(config: AlignConfig, encoder: GmailEncoder) -> None:
    """Refuse settings that this encoder, or this number of processes, cannot follow."""
    weights = config.weights
    if config.apply == "always" and config.method == "gmail":
        raise ConfigError("apply=always is for training-free methods: use best or beyond_noise")
    if not encoder.trainable(real_head=trains_real_head(config)):
        raise ConfigError("nothing is trained: set encoder.tune or encoder.train_heads")
    _check_heads(config)
    if not encoder.has_texts and (weights.text_generated > 0 or weights.text_real > 0):
        raise ConfigError(
            "this encoder has no text tower: set weights.text_generated and weights.text_real to 0"
        )
    if not encoder.has_texts and config.guarded == "retrieval":
        raise ConfigError("this encoder has no text tower: let the guard select something else")
    if config.lora.adapts_texts:
        _check_text_adapter(config)
    kind = config.text_loss or encoder.backbone.text_kind
    if kind == "sigmoid" and encoder.backbone.text_kind != "sigmoid":
        raise ConfigError(
            "text_loss=sigmoid needs the bias that a SigLIP was trained with: leave text_loss out"
        )
    if kind == "long_short" and (config.positives != "mask" or config.loss_chunk is not None):
        raise ConfigError(
            "text_loss=long_short looks at the components of a whole batch: leave positives and "
            "loss_chunk out"
        )
    if config.batch_size < ranks().count:
        raise ConfigError(
            f"a batch of {config.batch_size} pairs cannot be shared by {ranks().count} processes: "
            "raise batch_size"
        )


def _check_heads(config: AlignConfig) -> None:
    """Refuse settings of the heads that contradict others."""
    layout, steps = config.encoder, config.optim.steps
    if layout.norm == "batch" and (
        config.micro_batch is not None or ranks().count > 1 or not config.dual_heads
    ):
        raise ConfigError(
            "encoder.norm=batch looks at a whole batch of one modality: leave micro_batch and "
            "dual_heads out, and use one process"
        )
    if config.phases == "lora_then_heads" and (layout.tune == "none" or not layout.train_heads):
        raise ConfigError(
            "phases=lora_then_heads trains an adapter and then heads: leave encoder.tune and "
            "encoder.train_heads out"
        )
    if (config.lora_steps or 0) >= max(steps, 1):
        raise ConfigError(
            f"lora_steps is {config.lora_steps} of {steps} steps: leave steps to the heads"
        )


def _check_text_adapter(config: AlignConfig) -> None:
    """Refuse an adapter of the text tower that nothing would train."""
    if config.encoder.tune != "lora":
        raise ConfigError(
            f"lora.towers={config.lora.towers} adapts the text tower, but encoder.tune is "
            f"{config.encoder.tune}: set it to lora"
        )
    if not config.weights.text_generated and not config.weights.text_real:
        raise ConfigError(
            f"lora.towers={config.lora.towers} adapts the text tower, which no term of this loss "
            "trains: give weights.text_generated or weights.text_real a weight"
        )


def _fit_map(
    encoder: GmailEncoder,
    task: Task,
    config: AlignConfig,
    tables: TableMaker,
    generated: Artifact,
) -> dict[str, Any]:
    """Fit a training-free map to the training images' features and return the manifest's notes."""
    here = ranks()
    numbers = [distinct(task.train[:, n]) for n in (COLUMNS.index("generated"), REAL)]
    made = here.first_alone(lambda: tables.frozen(generated, "generated", numbers[0]))
    features = (made, task.tables.known["frozen"])
    rows = zip(features, numbers, strict=True)
    moments = [Moments.of(cast("Tensor", t.array), t.every_row_of(n)) for t, n in rows]
    guard = Guard(encoder, task.held, config)
    encoder.applied = False
    start = {"step": 0.0, **here.from_first(guard.metrics)}
    set_generated_head(encoder, MAPS[config.method](*moments))
    encoder.applied, encoder.best_step = True, 1
    kept = {"step": 1.0, **here.from_first(guard.metrics)}
    return verdict(guard, start, kept)


def _counts(task: Task) -> dict[str, int]:
    return {
        "pairs": len(task.train),
        "real_images": task.real_images,
        "held_out_pairs": len(task.held.pairs),
        "held_out_real_images": len(task.held.first),
    }


def optim_with_heads(config: AlignConfig, heads: Iterable[str]) -> OptimConfig:
    """Return the optimisation of an alignment, in which heads may have a rate of their own."""
    if config.lr_heads is None:
        return config.optim
    shares = dict.fromkeys(heads, config.lr_heads / config.optim.lr)
    return config.optim.model_copy(
        update={"rate_shares": shares | (config.optim.rate_shares or {})}
    )


class _Training:
    """One training: the encoder, what it reads, and the manifest's notes at the end."""

    def __init__(self, encoder: GmailEncoder, task: Task, config: AlignConfig, seed: int) -> None:
        self.encoder, self.task, self.config, self.seed = encoder, task, config, seed
        self.batches = Batches(task.train[:, REAL], config.batch_size, stable_seed(seed, "batches"))
        self.features = needed_features(config)
        self.parameters = dict(encoder.trainable(real_head=trains_real_head(config)))
        self.heads = encoder.heads.own().keys() & self.parameters.keys()
        self.guard = Guard(encoder, task.held, config, task.train)
        self.log_scale: nn.Parameter | None = None
        if config.learn_temperature:
            start = torch.tensor(-math.log(config.temperature), device=encoder.device)
            self.log_scale = nn.Parameter(start)
        if config.encoder.norm != "none":
            self._start_norms()
        encoder.applied = config.encoder.starts_plain  # the guard starts at the plain model

    @torch.no_grad()
    def _start_norms(self) -> None:
        """Let normalised heads begin about as the plain projection, by the first batch's images."""
        encoder, batch = self.encoder, self.load(0).to(self.encoder.device)
        pixels = encoder.preprocess.normalise(batch.inputs["generated"])
        encoder.heads.undo_norms(ranks().gather(encoder.trunk(pixels, Route.FROZEN)))

    def run(self, folder: Path) -> dict[str, Any]:
        """Train, keep what the guard chose and return the manifest's notes."""
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        report = self._fit(folder)
        best, scores = report.best_step, {row["step"]: row for row in report.scores}
        self.encoder.best_step, self.encoder.applied = best, best > 0
        if best not in scores:  # a crash of the machine damaged the event log
            scores[best] = {"step": float(best), **self._measure()}
        start, kept = scores.get(0, scores[best]), scores[best]
        notes: dict[str, Any] = {"stopped_early": report.stopped_early, "speed": report.speed}
        if best > 0 and self.config.strengths:
            rows = choose_strength(self.parameters, before, self.config.strengths, self._measure)
            chosen = next(row for row in rows if row["kept"])
            notes["strengths"] = rows
            kept = {name: chosen.get(name, value) for name, value in kept.items()}
        notes |= verdict(self.guard, start, kept)
        if not self.encoder.applied:
            put(self.parameters, before)
        if self.encoder.applied and self.log_scale is not None:
            notes["temperature"] = float(learned_temperature(self.log_scale.detach()))
        if self.encoder.applied and ranks().first:
            notes["drift"] = self.guard.drift()
            say(moved(notes["drift"]))
        return notes

    def _measure(self) -> dict[str, float]:
        return ranks().from_first(self.guard.metrics)

    def load(self, step: int) -> Batch:
        """Copy the batch of a step out of the tables."""
        config, places = self.config, self.batches.indices(step)
        replaced = None
        if config.data != "synthetic":
            rng = np.random.default_rng(stable_seed(self.seed, "mixed", step))
            share = 1.0 if config.data == "real" else config.real_share
            replaced = rng.random(len(places)) < share
        wanted = BatchRequest(
            self.features,
            part=ranks().part(len(places)),
            replaced=replaced,
            pinned=self.encoder.device.type == "cuda",
        )
        return gather(self.task.tables, self.task.train[places], wanted)

    def _fit(self, folder: Path) -> FitReport:
        """Run the training loop; the ids of a batch that breaks it are kept."""
        extra = {} if self.log_scale is None else {LOG_SCALE: self.log_scale}
        optim = optim_with_heads(self.config, sorted(self.heads))
        with prefetch(self.load, self.config.optim.steps) as fetch:

            def loss(step: int) -> dict[str, Tensor] | PiecewiseLoss:
                self.encoder.applied = True
                batch = fetch(step).to(self.encoder.device)
                terms = loss_terms if self.config.micro_batch is None else piecewise_terms
                with self.encoder.heads.learning():
                    made = terms(self.encoder, batch, self.config, self.log_scale)
                return made if self.config.phases == "joint" else self._phase(made, step)

            try:
                return fit(
                    {**self.parameters, **extra},
                    loss,
                    optim,
                    seed=self.seed,
                    folder=folder,
                    evaluate=self.guard.metrics,
                    label="alignment",
                    rate=pairs_rate(self.config.batch_size),
                )
            except TrainingError as error:
                raise self._with_batch(error, folder) from error

    def _phase(self, loss: Mapping[str, Tensor] | PiecewiseLoss, step: int) -> PiecewiseLoss:
        """Keep the gradients of the present phase alone; the optimiser leaves out what has none."""
        if not isinstance(loss, PiecewiseLoss):
            loss = PiecewiseLoss(loss, [loss["total"]])
        first = self.config.lora_steps or self.config.optim.steps // 2

        def pieces() -> Iterator[Tensor]:
            yield from loss.pieces
            for name, parameter in self.parameters.items():
                if (name in self.heads) == (step < first):
                    parameter.grad = None

        return PiecewiseLoss(loss.terms, pieces())

    def _with_batch(self, error: TrainingError, folder: Path) -> TrainingError:
        """Write down which pairs were in the batch that broke the training."""
        if error.step is None or not ranks().first:
            return error
        pairs = pair_ids(self.task, self.batches.indices(error.step))
        path = folder / BROKEN
        write_json(path, {"step": error.step, "reason": str(error), "pairs": pairs})
        return TrainingError(f"{error}; the pairs of its batch are in {path}", error.step)
