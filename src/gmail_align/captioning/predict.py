"""The stage: a captioner and features in, one caption an image out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, fingerprint, read_jsonl, write_jsonl
from gmail_align.captioning.clipcap.clipcap import ClipCap
from gmail_align.captioning.clipcap.folder import captioner_config, load_captioner
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.decode import Decoded, Decoding, decode, with_full_stop
from gmail_align.captioning.ifcap.folder import is_ifcap, open_reader
from gmail_align.captioning.ifcap.prompts import Reader
from gmail_align.captioning.origin import feature_origin, require_encoder, require_finite
from gmail_align.errors import DataError
from gmail_align.features.store import read_features
from gmail_align.progress import progress
from gmail_align.runtime import resolve_device, stable_seed

PREDICTIONS = "predictions.jsonl"
_PARTS = "parts"


class Opened:
    """A captioner on a device, ready to caption features.

    Raises:
        ArtifactError: it is no captioner, or damaged.
    """

    def __init__(self, artifact: Artifact, config: PredictConfig | None = None) -> None:
        self.how = config or PredictConfig()
        self.device = resolve_device(self.how.device)
        self.model: ClipCap | Reader
        if is_ifcap(artifact):
            self.model = open_reader(artifact, self.device)
            self.gpt2, self.tokenizer = self.model.model.gpt2, self.model.tokenizer
            own = self.model.config
            self.decoding = decoding_of(own.beam, own.max_tokens, self.how)
            return
        captioner = load_captioner(artifact, self.device)
        said, self.model = captioner.config, captioner.model
        self.gpt2, self.tokenizer = captioner.model.gpt2, captioner.tokenizer
        self.decoding = decoding_of(said["beam"], said["max_tokens"], self.how)
        if said.get("end_at_full_stop"):
            self.decoding = with_full_stop(self.decoding, self.tokenizer)

    def caption(
        self,
        ids: Sequence[str],
        features: Float[Tensor, "b d"],
        keys: Float[Tensor, "b e"] | None = None,
    ) -> list[Decoded]:
        """Caption one batch of images.

        Args:
            ids: The images, which seed what is drawn.
            features: Their features.
            keys: Features by which an IFCap looks captions up; ``features`` when None.

        Raises:
            DataError: the features are of another width than the captioner's, or not finite.
        """
        require_finite(features)
        seeds = [stable_seed(self.how.seed, "caption", name) for name in ids]
        with torch.inference_mode():
            if isinstance(self.model, Reader):
                found = self.model.look_up(features if keys is None else keys)
                prompt = self.model.of_images(features, found)
            else:
                prompt = self.model.prompt(features.float().to(self.device))
        return decode(self.gpt2, self.tokenizer, prompt, self.decoding, seeds=seeds)


def decoding_of(beam: int, max_tokens: int, how: PredictConfig) -> Decoding:
    """Settle how captions are searched for, from the captioner's settings and those given."""
    return Decoding(
        method=how.method,
        beam=how.beam or beam,
        max_tokens=max_tokens,
        length_penalty=how.length_penalty,
        top_p=how.top_p,
        temperature=how.temperature,
    )


def predict_captions(
    captioner: Artifact,
    features: Artifact,
    out: Path,
    config: PredictConfig | None = None,
    *,
    ids: Sequence[str] | None = None,
    retrieval: Artifact | None = None,
) -> Artifact:
    """Predict one caption an image; returns an artifact of kind ``predictions``.

    ``predictions.jsonl`` holds ``{image_id, text, log_prob, route}``, ``log_prob`` being the mean
    over the caption's tokens in nats. Each batch is a file until all are done, so an interrupted
    prediction goes on where it stopped. The manifest names both routes, trained on and read.

    Args:
        captioner: What :func:`train_clipcap` or :func:`train_ifcap` made.
        features: Image features.
        out: Folder of the predictions.
        config: How captions are searched for.
        ids: Images to caption, in this order; all of ``features`` by default.
        retrieval: Features of the same images by the encoder that an IFCap looks captions up with,
            when that is another than the one it reads.

    Raises:
        DataError: an id has no feature or comes twice, or the features are of another width, of
            captions, or of another encoder than the captioner was trained on.
    """
    how, origin = config or PredictConfig(), feature_origin(features)
    chosen = None if ids is None else fingerprint(list(ids))
    identity = {**how.identity(), "ids": chosen, **origin}
    trained_on = _require_readable(captioner, features, retrieval, how)
    inputs = {"captioner": captioner, "features": features}
    inputs |= {"retrieval": retrieval} if retrieval else {}
    draft = begin(out, "predictions", identity, inputs)
    if draft.complete is not None:
        return draft.complete
    source = read_features(features)
    wanted = list(source.ids if ids is None else ids)
    if len(set(wanted)) != len(wanted):
        raise DataError("an image id comes more than once: give each image once")
    source.rows(wanted)
    keys = read_features(retrieval) if retrieval else source
    keys.rows(wanted)
    opened = Opened(captioner, how)
    size = how.batch_size
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    parts = [draft.path(f"{_PARTS}/{index:05d}.jsonl") for index in range(len(batches))]
    with progress("captions", len(wanted), "images") as bar:
        for part, batch in zip(parts, batches, strict=True):
            if not part.exists():
                said = opened.caption(
                    batch, source.array[source.rows(batch)], keys.array[keys.rows(batch)]
                )
                write_jsonl(part, _rows(batch, said, origin["route"]))
            bar.advance(len(batch))
    write_jsonl(draft.path(PREDICTIONS), (row for part in parts for row in read_jsonl(part)))
    shutil.rmtree(draft.path(_PARTS), ignore_errors=True)
    return draft.finish({"images": len(wanted)}, trained_on=trained_on, predicted_from=origin)


def _require_readable(
    captioner: Artifact, features: Artifact, retrieval: Artifact | None, how: PredictConfig
) -> dict[str, str]:
    """Refuse features that are not the captioner's, and return what it was trained on."""
    trained_on: dict[str, str] = captioner_config(captioner)["trained_on"]
    require_encoder(trained_on["encoder"], features, any_encoder=how.any_encoder)
    if "retrieval" in trained_on:
        looks = trained_on["retrieval"]
        require_encoder(looks, retrieval or features, any_encoder=how.any_encoder)
    return trained_on


def _rows(ids: Sequence[str], said: Sequence[Decoded], route: str) -> list[dict[str, object]]:
    return [
        {"image_id": name, "text": caption.text, "log_prob": caption.log_prob, "route": route}
        for name, caption in zip(ids, said, strict=True)
    ]


def read_predictions(artifact: Artifact) -> dict[str, str]:
    """Return image id -> caption of an artifact of predictions."""
    return {row["image_id"]: row["text"] for row in read_jsonl(artifact.path(PREDICTIONS))}
