"""The stage: train ClipCap on features and captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gmail_align.artifacts import Artifact, Draft, begin, fingerprint
from gmail_align.captioning.captions import Batch, CaptionSet, Rows, Source
from gmail_align.captioning.clipcap.clipcap import ClipCap
from gmail_align.captioning.clipcap.folder import (
    Origin,
    build,
    captioner_config,
    gpt2_fingerprint,
    gpt2_folder,
    load_gpt2,
    save_captioner,
)
from gmail_align.captioning.config import ClipCapConfig, Compat
from gmail_align.captioning.decode import Decoding, decode
from gmail_align.captioning.origin import feature_origin, joint_origin, require_same_encoder
from gmail_align.captioning.predict import predict_captions, read_predictions
from gmail_align.captioning.tokens import say_cut
from gmail_align.captioning.validation import (
    VALIDATION_BATCH,
    CiderGuard,
    evaluated,
    mean_token_loss,
)
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.store import read_features
from gmail_align.progress import say
from gmail_align.runtime import resolve_device
from gmail_align.training.loop import CHECKPOINT, FitReport, fit

__all__ = ["predict_captions", "read_predictions", "train_clipcap", "validation_loss"]

Labelled = tuple[Artifact, Rows]
"""Features, and captions of them."""


def train_clipcap(
    config: ClipCapConfig,
    features: Artifact,
    rows: Rows,
    gpt2: Origin,
    out: Path,
    *,
    validation: Labelled | None = None,
    more: Sequence[Labelled] = (),
    seed: int = 0,
) -> Artifact:
    """Train ClipCap on features and their captions; returns an artifact of kind ``captioner``.

    Args:
        config: Shape and optimisation.
        features: Image features, of any route.
        rows: The captions: (id of the feature, text); an id may come many times.
        gpt2: A folder in GPT-2's format with weights and tokenizer, or a captioner to go on with.
        out: Folder of the captioner.
        validation: Held-out features and captions, on which the best step, step 0 included, is
            kept; without them the last step is.
        more: Further features and captions, such as real images beside generated ones.
        seed: Seed of the mapper, the batches and dropout.

    Raises:
        DataError: a caption is empty or without feature, or features differ in width or encoder.
        ModelError: the GPT-2 folder cannot be used.
        ConfigError: CIDEr is to pick the step without validation.
    """
    train = [(features, rows), *more]
    _require_fitting(config, train, validation, gpt2)
    draft = _begin(config, train, validation, gpt2, out, seed)
    if draft.complete is not None:
        return draft.complete
    words, tokenizer = load_gpt2(gpt2_folder(gpt2))
    faults = config.compat or Compat()

    def read(parts: Sequence[Labelled]) -> CaptionSet:
        sources = [(read_features(artifact), texts) for artifact, texts in parts]
        return CaptionSet.make(sources, tokenizer, config.max_tokens, end=not faults.untrained_end)

    captions = read(train)
    say_cut(captions.tokens, config.max_tokens)
    norm = captions.mean_norm() if config.norm == "mean" else config.norm
    model = build(config, gpt2, words, captions.width, norm, seed)
    model.to(resolve_device(config.device)).train()
    guard = None
    if validation:
        source = (read_features(validation[0]), validation[1])
        guard = _guard(model, tokenizer, config, read([validation]), source)
    report = _fit(model, captions, config, guard, seed, out)
    origin = joint_origin([part[0] for part in train])
    said = {"max_tokens": config.max_tokens, "beam": config.beam, "trained_on": origin}
    save_captioner(out, model, tokenizer, {**said, "end_at_full_stop": faults.end_at_full_stop})
    draft.path(CHECKPOINT).unlink(missing_ok=True)
    counts = {"captions": len(captions), "images": len(captions.rows.unique())}
    notes = {"best_step": report.best_step, "validation": report.scores, "trained_on": origin}
    return draft.finish(counts, truncated=captions.tokens.truncated, **notes)


def _require_fitting(
    config: ClipCapConfig,
    train: Sequence[Labelled],
    validation: Labelled | None,
    origin: Origin,
) -> None:
    """Refuse what cannot be trained on together, before anything is read.

    A captioner may go on with features of another encoder; that is said.
    """
    if config.select == "cider" and validation is None:
        raise ConfigError("select is cider and there is no validation: give held-out captions")
    parts = [*train, *([validation] if validation else [])]
    first = feature_origin(parts[0][0])["encoder"]
    if isinstance(origin, Artifact):
        own = captioner_config(origin)["trained_on"]["encoder"]
        require_same_encoder(own, first, True, "the encoder")
    for artifact, _ in parts:
        if artifact.kind == "features" and artifact.manifest["config"].get("what") == "text":
            raise DataError(f"{artifact.folder} holds features of captions: give those of images")
        other = feature_origin(artifact)["encoder"]
        if other != first:
            raise DataError(
                f"{artifact.folder} comes from encoder {other} and {parts[0][0].folder} from"
                f" {first}: extract both with one encoder"
            )


def _begin(
    config: ClipCapConfig,
    train: Sequence[Labelled],
    validation: Labelled | None,
    gpt2: Origin,
    out: Path,
    seed: int,
) -> Draft:
    """Open the captioner's folder under the identity of all that it is made from."""
    start = gpt2 if isinstance(gpt2, Artifact) else gpt2_fingerprint(gpt2)
    names = ["train", *(f"train{number}" for number in range(2, len(train) + 1))]
    sets = dict(zip(names, train, strict=True)) | ({"validation": validation} if validation else {})
    inputs: dict[str, Artifact | str] = {"gpt2": start}
    for name, (artifact, rows) in sets.items():
        inputs[f"{name}_features"] = artifact
        inputs[f"{name}_captions"] = fingerprint([list(row) for row in rows])
    identity = config.model_dump(mode="json", exclude={"device"})
    return begin(out, "captioner", identity, inputs, seed)


def _fit(
    model: ClipCap,
    captions: CaptionSet,
    config: ClipCapConfig,
    guard: Callable[[], Mapping[str, float]] | None,
    seed: int,
    out: Path,
) -> FitReport:
    """Train what is trained of mapper and GPT-2."""
    device = next(model.parameters()).device
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    zero_is_padding = bool(config.compat and config.compat.zero_is_padding)
    optim = config.optim.over(len(captions), config.batch_size)
    if optim.steps and optim.warmup >= optim.steps:
        say(
            f"the warm-up of {optim.warmup} steps lasts longer than the training of {optim.steps},"
            " which so never reaches its learning rate: lower optim.warmup"
        )

    def loss(step: int) -> dict[str, Tensor]:
        features, ids, mask = _to(captions.batch(step, config.batch_size, seed), device)
        with half:
            counted = mask & (ids != 0) if zero_is_padding else mask
            return {"total": model.loss(features, ids, counted)}

    return fit(
        model.trainable(),
        loss,
        optim,
        seed=seed,
        folder=out,
        evaluate=guard,
        label="captioner",
    )


def _guard(
    model: ClipCap,
    tokenizer: PreTrainedTokenizerBase,
    config: ClipCapConfig,
    held_out: CaptionSet,
    source: Source,
) -> Callable[[], Mapping[str, float]]:
    """Return what scores the present parameters: by loss, or by CIDEr of greedy captions."""
    features, rows = source
    device = next(model.parameters()).device
    judge = CiderGuard(rows, config.validation_images) if config.select == "cider" else None

    def caption(ids: Sequence[str]) -> list[str]:
        prompt = model.prompt(features.array[features.rows(ids)].float().to(device))
        how = Decoding(method="greedy", max_tokens=config.max_tokens)
        return [found.text for found in decode(model.gpt2, tokenizer, prompt, how)]

    def measure() -> dict[str, float]:
        mean = validation_loss(model, held_out, device)
        if judge is None:
            return {"score": -mean, "loss": mean}
        value = evaluated(model, lambda: judge.score(caption))
        return {"score": value, "loss": mean, "cider": value}

    return measure


def validation_loss(model: ClipCap, captions: CaptionSet, device: torch.device) -> float:
    """Return the mean cross-entropy of a token over ``captions`` in nats, without dropout."""

    def measure() -> float:
        return mean_token_loss(
            (model.loss(*_to(batch, device)), int(batch[2].sum()))
            for batch in captions.in_order(VALIDATION_BATCH)
        )

    return evaluated(model, measure)


def _to(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to the device."""
    features, ids, mask = batch
    return features.to(device), ids.to(device), mask.to(device)
