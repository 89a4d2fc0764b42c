"""The stage: train a captioner of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gmail_align.artifacts import Artifact, begin, first_difference
from gmail_align.captioning.caption_set import read_captioned
from gmail_align.captioning.captioner import (
    LANGUAGE_MODEL,
    CaptionerModel,
    CaptionerTraining,
    load_mapper,
    read_config,
    training_class,
)
from gmail_align.captioning.config import VALIDATION_BATCH, CaptionerConfig
from gmail_align.captioning.decode import Decoding, decode
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData
from gmail_align.captioning.kinds import kind_of
from gmail_align.captioning.prompt import token_losses
from gmail_align.captioning.tokens import say_cut
from gmail_align.encoders.language import language_model_fingerprint, load_language_model
from gmail_align.errors import ConfigError, DataError
from gmail_align.features.store import open_features
from gmail_align.metrics.java import tokenize
from gmail_align.metrics.ngrams import cider
from gmail_align.progress import say
from gmail_align.training.loop import CHECKPOINT, FitReport, fit, trained_parameters


def train_captioner(
    config: CaptionerConfig,
    data: CaptionerData,
    language_model: Path | Artifact,
    out: Path,
    *,
    seed: int = 0,
) -> Artifact:
    """Train a captioner; returns an artifact of kind ``captioner``.

    With validation the best step, step 0 included, is kept; without it the last step is.

    Args:
        config: Its settings, which also say what kind of captioner it is.
        data: What it is trained on.
        language_model: Folder of a causal language model with weights and tokenizer, or a captioner
            of the same kind to continue from.
        out: Folder of the captioner.
        seed: Seed of the mapper, the batches, noise and dropout.

    Raises:
        DataError: captions and features do not belong together, or come from different encoders.
        ModelError: the language model cannot be used.
        ConfigError: the configuration asks for data that is not given, or differs from the
            captioner that is continued.
    """
    kind = kind_of(config)
    if config.select == "cider" and data.validation is None:
        raise ConfigError("select is cider, which needs validation: give held-out captions")
    training_class(kind).check(config, data)
    identity = {"captioner": kind, **config.identity()}
    inputs: dict[str, Artifact | str] = {**data.artifacts()}
    if isinstance(language_model, Artifact):
        _require_kind(kind, language_model)
        inputs["language_model"] = language_model
    else:
        inputs["language_model"] = language_model_fingerprint(language_model)
    draft = begin(out, "captioner", identity, inputs, seed)
    if draft.complete is not None:
        return draft.complete
    earlier = language_model if isinstance(language_model, Artifact) else None
    folder = earlier.path(LANGUAGE_MODEL) if earlier else cast(Path, language_model)
    language = load_language_model(folder)
    training: CaptionerTraining = training_class(kind).prepare(config, data, language, out, seed)
    say_cut(training.tokens, config.max_tokens)
    if earlier:
        _continue_from(training.captioner, earlier)
    report = _fit(training, config, data.validation, seed, out)
    training.captioner.save(out)
    for file in (draft.path(CHECKPOINT), *training.temporary_files):
        file.unlink(missing_ok=True)
    return draft.finish(
        training.counts,
        best_step=report.best_step,
        validation=report.scores,
        speed=report.speed,
        truncated=training.tokens.truncated,
        trained_on=dict(training.captioner.identity),
    )


def _require_kind(kind: str, earlier: Artifact) -> None:
    other = read_config(earlier)["kind"]
    if other != kind:
        raise ConfigError(
            f"{earlier.folder} holds a captioner of kind {other}, and this training is of kind"
            f" {kind}: continue from a captioner of the same kind"
        )


def _continue_from(captioner: CaptionerModel, earlier: Artifact) -> None:
    """Copy the mapper of an earlier captioner, which may have read another encoder."""
    known = read_config(earlier)
    difference = first_difference(known["mapper"], dict(captioner.mapper_settings))
    if difference:
        raise ConfigError(
            f"the mapper of {earlier.folder} cannot be continued with these settings: {difference}"
        )
    if known["trained_on"]["encoder"] not in ("", captioner.identity["encoder"]):
        say(f"{earlier.folder} was trained on features of another encoder")
    load_mapper(captioner.mapper, earlier.folder)


def _fit(
    training: CaptionerTraining,
    config: CaptionerConfig,
    validation: CaptionedImages | None,
    seed: int,
    out: Path,
) -> FitReport:
    """Train what requires gradients of the mapper and the language model."""
    model = cast(nn.Module, training.captioner)
    device = next(model.parameters()).device
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    optim = config.optim.over(len(training.tokens), config.batch_size)
    if optim.steps and optim.warmup >= optim.steps:
        say(
            f"the warm-up of {optim.warmup} steps is not shorter than the training of"
            f" {optim.steps}, which never reaches its learning rate: lower optim.warmup"
        )

    def loss(step: int) -> dict[str, Tensor]:
        with half:
            batch = training.batch(step, seed)
            return {"total": token_losses(training.captioner.language.model, *batch).mean()}

    return fit(
        trained_parameters(model),
        loss,
        optim,
        seed=seed,
        folder=out,
        evaluate=_guard(training, config, validation) if validation else None,
        label="captioner",
    )


def _guard(
    training: CaptionerTraining, config: CaptionerConfig, validation: CaptionedImages
) -> Callable[[], Mapping[str, float]]:
    """Return what scores the present parameters: by loss, or by CIDEr of greedy captions."""
    captioner = training.captioner
    model = cast(nn.Module, captioner)
    judge = None
    if config.select == "cider":
        judge = CiderJudge(validation, captioner, config.validation_images)

    def measure() -> dict[str, float]:
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                mean = validation_loss(training)
                if judge is None:
                    return {"score": -mean, "loss": mean}
                value = judge.score(config.max_tokens)
                return {"score": value, "loss": mean, "cider": value}
        finally:
            model.train(was_training)

    return measure


def validation_loss(training: CaptionerTraining) -> float:
    """Return the mean cross-entropy of a token of the validation captions, in nats."""
    total, count = 0.0, 0
    for batch in training.held_out():
        tokens = int(batch.mask.sum())
        total += float(token_losses(training.captioner.language.model, *batch).mean()) * tokens
        count += tokens
    return total / count


class CiderJudge:
    """CIDEr-D of greedy captions against the validation captions of the same images.

    References are tokenised once. Document frequencies come from the images that are scored.

    Args:
        validation: The images and their captions.
        captioner: What predicts captions.
        most: Images that are scored, the first ones; all when None.

    Raises:
        DataError: fewer than two images, for which CIDEr is always 0.
        MissingExtraError: Java or pycocoevalcap is not installed.
    """

    def __init__(
        self, validation: CaptionedImages, captioner: CaptionerModel, most: int | None
    ) -> None:
        self.features, rows = read_captioned(validation)
        self.retrieval = open_features(validation.retrieval) if validation.retrieval else None
        self.captioner = captioner
        references: dict[str, list[str]] = {}
        for name, text in rows:
            references.setdefault(name, []).append(text)
        self.ids = list(references)[:most]
        if len(self.ids) < 2:
            raise DataError(
                "select=cider needs at least two validation images: select by loss instead"
            )
        tokens = tokenize({name: references[name] for name in self.ids})
        self.references = [tokens[name] for name in self.ids]

    def score(self, max_tokens: int) -> float:
        """Return CIDEr-D of the present parameters, on the tools' scale of 0..10."""
        texts = [
            text
            for start in range(0, len(self.ids), VALIDATION_BATCH)
            for text in self._captions(self.ids[start : start + VALIDATION_BATCH], max_tokens)
        ]
        return float(cider(tokenize({"": texts})[""], self.references).mean())

    def _captions(self, ids: Sequence[str], max_tokens: int) -> list[str]:
        keys = None
        if self.retrieval is not None:
            keys = self.retrieval.array[self.retrieval.rows(ids)]
        prompt = self.captioner.prompt(self.features.array[self.features.rows(ids)], keys)
        how = Decoding(method="greedy", max_tokens=max_tokens)
        return [one.text for one in decode(self.captioner.language, prompt, how)]
