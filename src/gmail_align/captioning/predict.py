"""The stage: a captioner and features in, one caption an image out."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.artifacts import Artifact, Draft, begin, fingerprint, read_jsonl, write_jsonl
from gmail_align.captioning.captioner import CaptionerModel, load_captioner, read_config
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.decode import Decoded, Decoding, decode
from gmail_align.captioning.provenance import (
    provenance,
    require_captioners_encoder,
    require_finite,
    require_image_features,
)
from gmail_align.data.model_outputs import PREDICTIONS, cut_mark, tell_cut
from gmail_align.errors import DataError
from gmail_align.features.store import open_features
from gmail_align.progress import progress, say
from gmail_align.runtime import resolve_device, stable_seed

PARTS = "parts"
ItemT = TypeVar("ItemT")
_FEW, _COLLAPSED = 20, 0.25
"""From so many captions on, a captioner has collapsed that gives this share of them one text."""


def caption_batch(
    captioner: CaptionerModel,
    ids: Sequence[str],
    features: Float[Tensor, "b d"],
    retrieval: Float[Tensor, "b e"] | None,
    how: PredictConfig,
) -> list[Decoded]:
    """Caption one batch of images.

    Args:
        captioner: A captioner of any kind.
        ids: The images, which seed what is drawn.
        features: Their features.
        retrieval: Features by which an IFCap looks captions up; ``features`` when None.
        how: How captions are searched for.

    Raises:
        DataError: the features are of another width than the captioner's, or not finite.
    """
    decoding = Decoding.chosen(how, captioner.decoding)
    seeds = [stable_seed(how.seed, "caption", name) for name in ids]
    with torch.inference_mode():
        prompt = captioner.prompt(require_finite(features), retrieval)
    return decode(captioner.language, prompt, decoding, seeds=seeds)


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
    over the caption's tokens in nats, and ``cut`` where a caption stopped at its longest length
    before an end. The manifest counts these. Each batch is a file until all are done, so an
    interrupted prediction goes on where it stopped. The manifest names both routes, trained on and
    read.

    Args:
        captioner: What :func:`~gmail_align.captioning.training.train_captioner` made.
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
    how, source = config or PredictConfig(), provenance(features)
    chosen = None if ids is None else fingerprint(list(ids))
    identity = {**how.identity(), "ids": chosen, **source}
    trained_on = require_readable(captioner, features, retrieval, how)
    inputs = {"captioner": captioner, "features": features}
    inputs |= {"retrieval": retrieval} if retrieval else {}
    draft = begin(out, "predictions", identity, inputs)
    if draft.complete is not None:
        return draft.complete
    store = open_features(features)
    wanted = list(store.ids if ids is None else ids)
    if len(set(wanted)) != len(wanted):
        raise DataError("an image id comes more than once: give each image once")
    store.rows(wanted)
    keys = open_features(retrieval) if retrieval else store
    keys.rows(wanted)
    model = load_captioner(captioner, resolve_device(how.device))

    def make(batch: Sequence[str]) -> list[dict[str, object]]:
        array, looked_up = store.array[store.rows(batch)], keys.array[keys.rows(batch)]
        captions = caption_batch(model, batch, array, looked_up, how)
        return _rows(batch, captions, source["route"])

    write_jsonl(draft.path(PREDICTIONS), rows_in_parts(draft, wanted, how.batch_size, make))
    _name_collapse([row["text"] for row in read_jsonl(draft.path(PREDICTIONS))])
    notes = tell_cut(read_jsonl(draft.path(PREDICTIONS)), model.decoding.max_tokens)
    shutil.rmtree(draft.path(PARTS), ignore_errors=True)
    return draft.finish(
        {"images": len(wanted)}, trained_on=trained_on, predicted_from=source, **notes
    )


def rows_in_parts(
    draft: Draft,
    items: Sequence[ItemT],
    size: int,
    make: Callable[[Sequence[ItemT]], list[dict[str, Any]]],
) -> Iterator[Any]:
    """Yield what ``make`` says of items; each batch is a file in :data:`PARTS` before.

    A run that was killed goes on with the first batch that is not on disk.
    """
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    parts = [draft.path(f"{PARTS}/{index:05d}.jsonl") for index in range(len(batches))]
    with progress("captions", len(items), "images") as bar:
        for part, batch in zip(parts, batches, strict=True):
            if not part.exists():
                write_jsonl(part, make(batch))
            bar.advance(len(batch))
    for part in parts:
        yield from read_jsonl(part)


def require_readable(
    captioner: Artifact, features: Artifact, retrieval: Artifact | None, how: PredictConfig
) -> dict[str, str]:
    """Refuse features that are not the captioner's, and return what it was trained on."""
    trained_on: dict[str, str] = read_config(captioner)["trained_on"]
    read = [("encoder", features)]
    read += [("retrieval", retrieval or features)] if "retrieval" in trained_on else []
    for role, artifact in read:
        require_image_features(artifact)
        other = provenance(artifact)["encoder"]
        what = f"the encoder of {artifact.folder}"
        require_captioners_encoder(trained_on[role], other, how.any_encoder, what)
    return trained_on


def _name_collapse(captions: Sequence[str]) -> None:
    """Say so where many images get the same caption."""
    if len(captions) < _FEW:
        return
    text, times = Counter(captions).most_common(1)[0]
    if times >= _COLLAPSED * len(captions):
        say(
            f"{times / len(captions):.0%} of captions are the same sentence ({text!r}): this "
            "captioner has collapsed; train it for more steps, or at another rate"
        )


def _rows(ids: Sequence[str], captions: Sequence[Decoded], route: str) -> list[dict[str, object]]:
    return [
        {
            "image_id": name,
            "text": caption.text,
            "log_prob": caption.log_prob,
            "route": route,
            **cut_mark(caption.cut),
        }
        for name, caption in zip(ids, captions, strict=True)
    ]
