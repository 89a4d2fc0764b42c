"""The stage: train IFCap on captions, their text features and, with GMAIL, generated images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, fingerprint
from gmail_align.captioning.clipcap.folder import gpt2_fingerprint, load_gpt2
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.ifcap.data import RETRIEVED, CaptionSource, ImageSource, Training
from gmail_align.captioning.ifcap.datastore import Datastore, read_datastore, write_datastore
from gmail_align.captioning.ifcap.entities import read_vocabulary
from gmail_align.captioning.ifcap.folder import DATASTORE, save_ifcap
from gmail_align.captioning.ifcap.model import IFCap
from gmail_align.captioning.ifcap.prompts import Reader
from gmail_align.captioning.origin import feature_origin
from gmail_align.captioning.tokens import say_cut, tokenise
from gmail_align.captioning.validation import VALIDATION_BATCH, evaluated, mean_token_loss
from gmail_align.errors import ConfigError, DataError, ModelError
from gmail_align.features.store import read_features
from gmail_align.runtime import resolve_device, stable_seed
from gmail_align.training.loop import CHECKPOINT, FitReport, fit

__all__ = ["CaptionSource", "ImageSource", "train_ifcap"]


def train_ifcap(
    config: IFCapConfig,
    source: CaptionSource,
    gpt2: Path,
    out: Path,
    *,
    validation: ImageSource | None = None,
    seed: int = 0,
) -> Artifact:
    """Train IFCap; returns an artifact of kind ``captioner``.

    Args:
        config: Modes, noise, prompts and optimisation.
        source: Captions and features.
        gpt2: A folder in GPT-2's format with weights and tokenizer.
        out: Folder of the captioner, which holds the captions too: it looks them up.
        validation: Held-out images; the step with the lowest loss of their captions is kept, step
            0 included. Without it the last step is kept.
        seed: Seed of the weights, the batches, the noise and dropout.

    Raises:
        DataError: captions and features do not belong together, or encoders differ.
        ConfigError: the mode needs generated images and there are none.
        ModelError: the GPT-2 folder cannot be used.
        MissingExtraError: the tagger is not installed.
    """
    _require_fitting(config, source, validation)
    draft = begin(
        out,
        "captioner",
        {"captioner": "ifcap", **config.model_dump(mode="json", exclude={"device", "vocabulary"})},
        _inputs(config, source, gpt2, validation),
        seed,
    )
    if draft.complete is not None:
        return draft.complete
    write_datastore(out / DATASTORE, source.rows, source.texts, source.retrieval, config)
    store = read_datastore(out / DATASTORE)
    if config.captions_needed > len(store):
        raise ConfigError(
            f"{config.captions_needed} captions are to be looked up for an image and there are"
            f" {len(store)}: lower retrieved and noun_captions, or give more"
        )
    reader = _build(config, gpt2, store, seed)
    captions = Training.make(reader, source, out, seed)
    say_cut(captions.tokens, config.max_tokens)
    reader.require_room()
    report = _fit(captions, validation, seed, out)
    origin = _origin(source, config)
    save_ifcap(out, reader, origin)
    draft.path(CHECKPOINT).unlink(missing_ok=True)
    draft.path(RETRIEVED).unlink(missing_ok=True)
    return draft.finish(
        {"captions": len(captions), "generated": int((captions.images >= 0).sum())},
        best_step=report.best_step,
        validation=report.scores,
        truncated=captions.tokens.truncated,
        trained_on=origin,
    )


def _build(config: IFCapConfig, gpt2: Path, store: Datastore, seed: int) -> Reader:
    """Put a freshly drawn fusion module before the GPT-2 of a folder.

    Raises:
        ModelError: the GPT-2 cannot be used, or its width does not divide into heads.
    """
    words, tokenizer = load_gpt2(gpt2)
    if words.config.n_embd % config.heads:
        raise ModelError(
            f"this GPT-2 is {words.config.n_embd} wide, which {config.heads} heads do not divide:"
            " set heads"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "fusion"))
        model = IFCap(
            words,
            store.features.shape[1],
            prefix_length=config.prefix_length,
            layers=config.layers,
            heads=config.heads,
        )
    model.to(resolve_device(config.device)).train()
    return Reader(model, tokenizer, store, config)


def _origin(source: CaptionSource, config: IFCapConfig) -> dict[str, str]:
    """Name what the captioner reads: the encoder, and weights and route of what it saw."""
    origin = {**feature_origin(source.texts), "retrieval": _keys(source)["encoder"]}
    if config.mode != "text_noise" and source.generated is not None:
        generated = feature_origin(source.generated)
        origin |= {key: generated[key] for key in ("weights", "route")}
    return origin


def _fit(captions: Training, validation: ImageSource | None, seed: int, out: Path) -> FitReport:
    """Train fusion module and GPT-2; the guard is the mean loss of a token of held-out images."""
    reader = captions.reader
    config, model = reader.config, reader.model
    half = torch.autocast(
        reader.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
    )

    def loss(step: int) -> dict[str, Tensor]:
        with half:
            return {"total": captions.loss(step, seed)}

    return fit(
        dict(model.named_parameters()),
        loss,
        config.optim.over(len(captions), config.batch_size),
        seed=seed,
        folder=out,
        evaluate=_guard(reader, validation) if validation else None,
        label="captioner",
    )


def _guard(reader: Reader, source: ImageSource) -> Callable[[], Mapping[str, float]]:
    """Return what measures the mean loss of a token of held-out images' captions."""
    features, keys = (
        read_features(source.features),
        read_features(source.retrieval or source.features),
    )
    rows = list(source.rows)
    names = [name for name, _ in rows]
    tokens = tokenise([text for _, text in rows], reader.tokenizer, reader.config.max_tokens)
    at, images = features.rows(names), list(dict.fromkeys(names))
    place = {name: row for row, name in enumerate(images)}
    found = reader.look_up(keys.array[keys.rows(images)])[[place[name] for name in names]]

    def losses() -> float:
        def batches() -> Iterator[tuple[Tensor, int]]:
            for start in range(0, len(rows), VALIDATION_BATCH):
                some = torch.arange(start, min(start + VALIDATION_BATCH, len(rows)))
                prompt = reader.of_images(features.array[at[some]], found[some])
                ids, mask = tokens.batch(some)
                ids, mask = ids.to(reader.device), mask.to(reader.device)
                yield reader.model.loss(prompt, ids, mask), int(mask.sum())

        return mean_token_loss(batches())

    def measure() -> dict[str, float]:
        mean = evaluated(reader.model, losses)
        return {"score": -mean, "loss": mean}

    return measure


def _require_fitting(
    config: IFCapConfig, source: CaptionSource, validation: ImageSource | None
) -> None:
    """Refuse features of encoders that do not belong together."""
    if config.mode != "text_noise" and source.generated is None:
        raise ConfigError(f"mode is {config.mode}: give features of generated images")
    reads, looks = feature_origin(source.texts)["encoder"], _keys(source)["encoder"]
    held = [(validation.features, reads)] if validation else []
    if validation is not None:
        held.append((validation.retrieval or validation.features, looks))
    if source.generated is not None:
        held.append((source.generated, reads))
    for artifact, wanted in held:
        if artifact.manifest["config"].get("what") == "text":
            raise DataError(f"{artifact.folder} holds features of captions: give those of images")
        found = feature_origin(artifact)["encoder"]
        if found != wanted:
            raise DataError(
                f"{artifact.folder} comes from encoder {found} and its captions' features from"
                f" {wanted}: extract both with one encoder"
            )


def _keys(source: CaptionSource) -> dict[str, str]:
    return feature_origin(source.retrieval or source.texts)


def _inputs(
    config: IFCapConfig, source: CaptionSource, gpt2: Path, validation: ImageSource | None
) -> dict[str, Artifact | str]:
    """Name all that the captioner is made from."""
    inputs: dict[str, Artifact | str] = {"gpt2": gpt2_fingerprint(gpt2), "texts": source.texts}
    inputs["captions"] = fingerprint([list(row) for row in source.rows])
    if config.vocabulary is not None:
        inputs["vocabulary"] = fingerprint(sorted(read_vocabulary(config.vocabulary)))
    found = {"retrieval": source.retrieval, "generated": source.generated}
    if validation is not None:
        inputs["validation_captions"] = fingerprint([list(row) for row in validation.rows])
        found |= {
            "validation_features": validation.features,
            "validation_retrieval": validation.retrieval,
        }
    return inputs | {name: artifact for name, artifact in found.items() if artifact is not None}
