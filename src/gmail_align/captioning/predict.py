"""The stage: a captioner and features in, one caption an image out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gmail_align.artifacts import Artifact, begin, fingerprint, read_jsonl, write_jsonl
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.decode import Decoded, Decoding, decode, with_full_stop
from gmail_align.captioning.folder import captioner_config, load_captioner
from gmail_align.captioning.language import Prompt
from gmail_align.errors import DataError
from gmail_align.features.store import Features, read_features
from gmail_align.progress import progress, say
from gmail_align.runtime import resolve_device, stable_seed

PREDICTIONS = "predictions.jsonl"
_PARTS = "parts"


class Opened:
    """A captioner on a device, with the features that it captions."""

    def __init__(
        self, artifact: Artifact, features: Features, config: PredictConfig | None = None
    ) -> None:
        """Open a captioner.

        Raises:
            ArtifactError: it is none, or damaged.
            DataError: the features are of another width than the captioner's.
        """
        self.how = config or PredictConfig()
        self.features = features
        device = resolve_device(self.how.device)
        captioner = load_captioner(artifact, device)
        model = captioner.model

        def prompts(ids: Sequence[str]) -> Prompt:
            rows = features.array[features.rows(ids)]
            return model.prompt(rows.float().to(device))

        self.gpt2: GPT2LMHeadModel = model.gpt2
        self.tokenizer: PreTrainedTokenizerBase = captioner.tokenizer
        self.prompts: Callable[[Sequence[str]], Prompt] = prompts
        self.decoding = decoding_of(captioner.config, self.how, self.tokenizer)

    def caption(self, ids: Sequence[str]) -> list[Decoded]:
        """Caption one batch of images."""
        seeds = [stable_seed(self.how.seed, "caption", name) for name in ids]
        with torch.inference_mode():
            prompt = self.prompts(ids)
        return decode(self.gpt2, self.tokenizer, prompt, self.decoding, seeds=seeds)


def decoding_of(
    captioner: dict[str, object], how: PredictConfig, tokenizer: PreTrainedTokenizerBase
) -> Decoding:
    """Settle how captions are searched for, from the captioner's settings and those given."""
    beam, most = captioner["beam"], captioner["max_tokens"]
    assert isinstance(beam, int) and isinstance(most, int)
    decoding = Decoding(
        method=how.method,
        beam=how.beam or beam,
        max_tokens=most,
        length_penalty=how.length_penalty,
        top_p=how.top_p,
        temperature=how.temperature,
    )
    return with_full_stop(decoding, tokenizer) if captioner.get("end_at_full_stop") else decoding


def predict_captions(
    captioner: Artifact,
    features: Artifact,
    out: Path,
    config: PredictConfig | None = None,
    *,
    ids: Sequence[str] | None = None,
) -> Artifact:
    """Predict one caption an image; returns an artifact of kind ``predictions``.

    ``predictions.jsonl`` holds ``{image_id, text, log_prob, route}``, ``log_prob`` being the mean
    over the caption's tokens in nats. Each batch is a file until all are done, so an interrupted
    prediction goes on where it stopped. Features of another route than the captioner's are what
    GMAIL is about, and the manifest names both.

    Args:
        captioner: What :func:`train_clipcap` made.
        features: Image features.
        out: Folder of the predictions.
        config: How captions are searched for.
        ids: Images to caption, in this order; all of ``features`` by default.

    Raises:
        DataError: an id has no feature or comes twice, or the features are of another width, of
            captions, or of another encoder than the captioner was trained on.
    """
    how, origin = config or PredictConfig(), feature_origin(features)
    chosen = None if ids is None else fingerprint(list(ids))
    identity = {**how.identity(), "ids": chosen, **origin}
    trained_on = captioner_config(captioner)["trained_on"]
    require_encoder(trained_on, features, how)
    draft = begin(out, "predictions", identity, {"captioner": captioner, "features": features})
    if draft.complete is not None:
        return draft.complete
    source = read_features(features)
    wanted = list(source.ids if ids is None else ids)
    if len(set(wanted)) != len(wanted):
        raise DataError("an image id comes more than once: give each image once")
    source.rows(wanted)
    opened = Opened(captioner, source, how)
    size = how.batch_size
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    parts = [draft.path(f"{_PARTS}/{index:05d}.jsonl") for index in range(len(batches))]
    with progress("captions", len(wanted), "images") as bar:
        for part, batch in zip(parts, batches, strict=True):
            if not part.exists():
                write_jsonl(part, _rows(opened, batch, origin["route"]))
            bar.advance(len(batch))
    write_jsonl(draft.path(PREDICTIONS), (row for part in parts for row in read_jsonl(part)))
    shutil.rmtree(draft.path(_PARTS), ignore_errors=True)
    return draft.finish({"images": len(wanted)}, trained_on=trained_on, predicted_from=origin)


def _rows(opened: Opened, batch: Sequence[str], route: str) -> list[dict[str, object]]:
    return [
        {"image_id": name, "text": caption.text, "log_prob": caption.log_prob, "route": route}
        for name, caption in zip(batch, opened.caption(batch), strict=True)
    ]


def read_predictions(artifact: Artifact) -> dict[str, str]:
    """Return image id -> caption of an artifact of predictions."""
    return {row["image_id"]: row["text"] for row in read_jsonl(artifact.path(PREDICTIONS))}


def feature_origin(features: Artifact) -> dict[str, str]:
    """Name the encoder, the weights of it and the route that features came from."""
    config = features.manifest["config"]
    return {key: str(config.get(key, "")) for key in ("encoder", "weights", "route")}


def require_encoder(trained_on: dict[str, str], features: Artifact, how: PredictConfig) -> None:
    """Refuse features that a captioner cannot read, or of another encoder than its own.

    Raises:
        DataError: they are of captions, or of another encoder and that was not asked for.
    """
    if features.manifest["config"].get("what") == "text":
        raise DataError(f"{features.folder} holds features of captions: give those of images")
    own, other = trained_on.get("encoder", ""), feature_origin(features)["encoder"]
    if not own or own == other:
        return
    if not how.any_encoder:
        raise DataError(
            f"{features.folder} holds features of encoder {other} and the captioner was trained on"
            f" {own}: extract them with its encoder, or say any_encoder if that is meant"
        )
    say("the features come from another encoder than those the captioner was trained on")
