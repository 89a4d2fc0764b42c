"""The stages: train a captioner on features and captions, predict captions from features."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gmail_align.artifacts import Artifact, Draft, begin, fingerprint, read_jsonl, write_jsonl
from gmail_align.captioning.captions import Batch, CaptionSet, Rows
from gmail_align.captioning.clipcap import ClipCap
from gmail_align.captioning.config import ClipCapConfig
from gmail_align.captioning.decode import decode
from gmail_align.captioning.folder import (
    Captioner,
    build,
    gpt2_fingerprint,
    load_captioner,
    save_captioner,
)
from gmail_align.errors import DataError
from gmail_align.features.store import Features, read_features
from gmail_align.progress import progress, say
from gmail_align.runtime import resolve_device
from gmail_align.training.loop import CHECKPOINT, FitReport, fit

PREDICTIONS = "predictions.jsonl"
_VALIDATION_BATCH = 256
_PARTS = "parts"


def train_clipcap(
    config: ClipCapConfig,
    features: Artifact,
    rows: Rows,
    gpt2: Path,
    out: Path,
    *,
    validation: tuple[Artifact, Rows] | None = None,
    seed: int = 0,
) -> Artifact:
    """Train ClipCap on features and their captions; returns an artifact of kind ``captioner``.

    Args:
        config: Shape of the captioner and its optimisation.
        features: Image features, of any route.
        rows: The captions: (id of the feature, text); an id may come many times.
        gpt2: A folder in GPT-2's format with weights and tokenizer.
        out: Folder of the captioner.
        validation: Held-out features and captions; the step with the lowest loss on them is kept,
            step 0 included. Without it the last step is kept.
        seed: Seed of the mapper, the batches and dropout.

    Raises:
        DataError: a caption is empty or has no feature, or the two sets differ in width.
        ModelError: the GPT-2 folder cannot be used.
    """
    sets = {"train": (features, rows)} | ({"validation": validation} if validation else {})
    draft = _begin(config, sets, gpt2, out, seed)
    if draft.complete is not None:
        return draft.complete
    sources = {name: read_features(artifact) for name, (artifact, _) in sets.items()}
    model, tokenizer = build(config, gpt2, sources["train"].array.shape[1], seed)
    captions = {
        name: CaptionSet.make(sources[name], pairs, tokenizer, config.max_tokens)
        for name, (_, pairs) in sets.items()
    }
    report = _fit(model, captions, config, seed, out)
    origin = feature_origin(features)
    decoding = {"max_tokens": config.max_tokens, "beam": config.beam}
    save_captioner(out, model, tokenizer, {**decoding, "trained_on": origin})
    draft.path(CHECKPOINT).unlink(missing_ok=True)
    train = captions["train"]
    return draft.finish(
        {"captions": len(train), "images": len(set(train.rows.tolist()))},
        best_step=report.best_step,
        validation=report.scores,
        truncated=train.tokens.truncated,
        trained_on=origin,
    )


def _begin(
    config: ClipCapConfig,
    sets: Mapping[str, tuple[Artifact, Rows]],
    gpt2: Path,
    out: Path,
    seed: int,
) -> Draft:
    """Open the captioner's folder under the identity of all that it is made from."""
    inputs: dict[str, Artifact | str] = {"gpt2": gpt2_fingerprint(gpt2)}
    for name, (artifact, rows) in sets.items():
        inputs[f"{name}_features"] = artifact
        inputs[f"{name}_captions"] = fingerprint([list(row) for row in rows])
    identity = config.model_dump(mode="json", exclude={"device"})
    return begin(out, "captioner", identity, inputs, seed)


def _fit(
    model: ClipCap, captions: Mapping[str, CaptionSet], config: ClipCapConfig, seed: int, out: Path
) -> FitReport:
    """Train mapper and GPT-2; the guard is the mean loss of a held-out token."""
    device = resolve_device(config.device)
    model.to(device).train()
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    train, held_out = captions["train"], captions.get("validation")

    def loss(step: int) -> dict[str, Tensor]:
        with half:
            return {"total": model.loss(*_to(train.batch(step, config.batch_size, seed), device))}

    def evaluate() -> dict[str, float]:
        assert held_out is not None
        mean = validation_loss(model, held_out, device)
        return {"score": -mean, "loss": mean}

    return fit(
        dict(model.named_parameters()),
        loss,
        config.optim,
        seed=seed,
        folder=out,
        evaluate=evaluate if held_out is not None else None,
        label="captioner",
    )


@torch.no_grad()
def validation_loss(model: ClipCap, captions: CaptionSet, device: torch.device) -> float:
    """Return the mean cross-entropy of a token over ``captions`` in nats, without dropout."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in captions.in_order(_VALIDATION_BATCH):
        tokens = int(batch[2].sum())
        total += float(model.loss(*_to(batch, device))) * tokens
        count += tokens
    model.train(training)
    return total / count


def predict_captions(
    captioner: Artifact,
    features: Artifact,
    out: Path,
    *,
    ids: Sequence[str] | None = None,
    beam: int | None = None,
    batch_size: int = 128,
    device: str = "auto",
) -> Artifact:
    """Predict one caption an image; returns an artifact of kind ``predictions``.

    ``predictions.jsonl`` holds ``{image_id, text, log_prob, route}``, ``log_prob`` being the mean
    over the caption's tokens in nats. Each batch is a file until all are done, so an interrupted
    prediction goes on where it stopped. Features of another encoder or route than the captioner's
    are allowed, and the manifest names both.

    Args:
        captioner: What :func:`train_clipcap` made.
        features: Image features.
        out: Folder of the predictions.
        ids: Images to caption, in this order; all of ``features`` by default.
        beam: Beams of the search; the captioner's own number by default; 1 is greedy.
        batch_size: Images predicted together.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        DataError: an id has no feature or comes twice, or the features are of another width.
    """
    chosen = None if ids is None else fingerprint(list(ids))
    settings = {"beam": beam, "batch_size": batch_size, "ids": chosen}
    origin = feature_origin(features)
    draft = begin(
        out, "predictions", {**settings, **origin}, {"captioner": captioner, "features": features}
    )
    if draft.complete is not None:
        return draft.complete
    source = read_features(features)
    wanted = list(source.ids if ids is None else ids)
    if len(set(wanted)) != len(wanted):
        raise DataError("an image id comes more than once: give each image once")
    source.rows(wanted)
    opened = load_captioner(captioner, resolve_device(device))
    trained_on = opened.config["trained_on"]
    beam = beam or int(opened.config["beam"])
    batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    parts = [draft.path(f"{_PARTS}/{index:05d}.jsonl") for index in range(len(batches))]
    with progress("captions", len(wanted), "images") as bar:
        for part, batch in zip(parts, batches, strict=True):
            if not part.exists():
                write_jsonl(part, _predict(opened, source, batch, beam, origin["route"]))
            bar.advance(len(batch))
    write_jsonl(draft.path(PREDICTIONS), (row for part in parts for row in read_jsonl(part)))
    shutil.rmtree(draft.path(_PARTS), ignore_errors=True)
    if trained_on["encoder"] != origin["encoder"]:
        say("the features come from another encoder than those the captioner was trained on")
    return draft.finish({"images": len(wanted)}, trained_on=trained_on, predicted_from=origin)


def read_predictions(artifact: Artifact) -> dict[str, str]:
    """Return image id -> caption of an artifact of predictions."""
    return {row["image_id"]: row["text"] for row in read_jsonl(artifact.path(PREDICTIONS))}


def feature_origin(features: Artifact) -> dict[str, str]:
    """Name the encoder, the weights of it and the route that features came from."""
    config = features.manifest["config"]
    return {key: str(config.get(key, "")) for key in ("encoder", "weights", "route")}


def _predict(
    opened: Captioner, source: Features, batch: Sequence[str], beam: int, route: str
) -> list[dict[str, object]]:
    """Caption one batch of images."""
    device = next(opened.model.parameters()).device
    features = source.array[source.rows(batch)].float().to(device)
    captions = decode(
        opened.model,
        opened.tokenizer,
        features,
        beam=beam,
        max_tokens=opened.config["max_tokens"],
    )
    return [
        {"image_id": name, "text": caption.text, "log_prob": caption.log_prob, "route": route}
        for name, caption in zip(batch, captions, strict=True)
    ]


def _to(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to the device."""
    features, ids, mask = batch
    return features.to(device), ids.to(device), mask.to(device)
