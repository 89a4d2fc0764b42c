"""Captions to generate images from, for people who have none: of class names, or of photos."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from gmail_align.artifacts import Artifact, Draft, begin, beside
from gmail_align.captioning.captioner import load_captioner
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.decode import Decoded, Decoding, decode
from gmail_align.captioning.predict import PARTS, caption_batch, require_readable, rows_in_parts
from gmail_align.captioning.prompt import Prompt
from gmail_align.captioning.tokens import pad_left
from gmail_align.data.captions import Caption, is_usable, read_captions, tidy, write_captions
from gmail_align.data.ids import numbered
from gmail_align.data.model_outputs import CUT, cut_mark, tell_cut
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.language import (
    LanguageModel,
    language_model_fingerprint,
    load_language_model,
)
from gmail_align.encoders.route import Route
from gmail_align.errors import DataError
from gmail_align.features.run import extract_images
from gmail_align.features.store import open_features
from gmail_align.runtime import resolve_device, stable_seed

MAX_TOKENS: Final = 40
"""Tokens that a language model adds to a caption at most."""


def continue_captions(
    captions: Artifact,
    language_model: Path,
    out: Path,
    config: PredictConfig | None = None,
    *,
    each: int = 1,
) -> Artifact:
    """Let a language model go on from short captions, such as those of classes.

    "a photo of a dog." becomes "a photo of a dog on ...". Each continuation is drawn by a seed of
    its caption's id, and ends with the sentence.

    Args:
        captions: The short captions, such as an import of class folders makes.
        language_model: A causal language model of transformers.
        out: Folder of the new captions.
        config: How texts are drawn; from the nucleus when None.
        each: New captions of each short one.

    Raises:
        ModelError: the language model cannot be used.
        ArtifactError: the input does not hold captions, or ``out`` belongs to other inputs.
    """
    how = config or PredictConfig(method="nucleus")
    inputs: dict[str, Artifact | str] = {"captions": captions}
    inputs["language_model"] = language_model_fingerprint(language_model)
    draft = begin(out, "captions", {**how.identity(), "each": each}, inputs)
    if draft.complete is not None:
        return draft.complete
    language = load_language_model(language_model)
    language.model.eval().to(resolve_device(how.device))
    rows = [
        Caption(numbered(row.caption_id, k), row.text, row.image_id)
        for row in read_captions(captions)
        for k in range(each)
    ]

    def texts(batch: Sequence[Caption]) -> list[Decoded]:
        return _continued(language, batch, how)

    return _write(draft, rows, texts, how.batch_size, MAX_TOKENS)


def caption_photos(
    images: Artifact,
    captioner: Artifact,
    encoder: GmailEncoder,
    out: Path,
    config: PredictConfig | None = None,
    *,
    route: Route = Route.FROZEN,
    each: int = 1,
) -> Artifact:
    """Caption photos that have no captions. Their features are kept beside, in ``OUT.features``.

    Args:
        images: The photos.
        captioner: A trained captioner.
        encoder: The encoder that it was trained on.
        out: Folder of the captions.
        config: How captions are drawn; from the nucleus when None.
        route: Which of the encoder's weights the photos go through.
        each: Captions of each photo.

    Raises:
        DataError: the encoder is not the captioner's, or no caption holds text.
        ArtifactError: the input does not hold images, or ``out`` belongs to other inputs.
    """
    how = config or PredictConfig(method="nucleus")
    inputs: dict[str, Artifact | str] = {"images": images, "captioner": captioner}
    inputs["encoder"] = encoder.base_fingerprint
    settings = {**how.identity(), "each": each, "route": route.value}
    draft = begin(out, "captions", settings, inputs)
    if draft.complete is not None:
        return draft.complete
    store = extract_images(images, encoder, route, beside(out, ".features"))
    require_readable(captioner, store, None, how)
    features = open_features(store)
    model = load_captioner(captioner, resolve_device(how.device))
    rows = [Caption(numbered(name, k), "", name) for name in features.ids for k in range(each)]

    def texts(batch: Sequence[Caption]) -> list[Decoded]:
        array = features.array[features.rows([row.image_id for row in batch])]
        names = [row.caption_id for row in batch]
        return caption_batch(model, names, array, None, how)

    return _write(draft, rows, texts, how.batch_size, model.decoding.max_tokens)


def _continued(
    language: LanguageModel, batch: Sequence[Caption], how: PredictConfig
) -> list[Decoded]:
    """Return the whole sentences that a language model makes of the beginnings of some."""
    stems = [row.text.rstrip(" .") for row in batch]
    tokens = language.tokenizer(stems, add_special_tokens=False)["input_ids"]
    ids, mask = pad_left(tokens)
    device = language.model.device
    embeddings = language.model.get_input_embeddings()(ids.to(device))
    language.require_positions(ids.shape[1], MAX_TOKENS)
    ends = language.token_of("."), language.token_of("\n")
    decoding = Decoding.chosen(how, Decoding(max_tokens=MAX_TOKENS, ends=ends))
    seeds = [stable_seed(how.seed, "prompt", row.caption_id) for row in batch]
    with torch.inference_mode():
        made = decode(language, Prompt(embeddings, mask.to(device)), decoding, seeds=seeds)
    return [
        replace(one, continuation=_sentence(stem, one))
        for stem, one in zip(stems, made, strict=True)
    ]


def _sentence(stem: str, made: Decoded) -> str:
    return f"{stem}{made.continuation}".split("\n")[0].rstrip(" .") + "."


def _write(
    draft: Draft,
    rows: Sequence[Caption],
    texts: Callable[[Sequence[Caption]], list[Decoded]],
    batch_size: int,
    most: int,
) -> Artifact:
    """Write new captions batch by batch; those without text are counted and left out.

    Those that stopped at ``most`` tokens are counted.
    """
    marks = []

    def make(batch: Sequence[Caption]) -> list[dict[str, Any]]:
        return [
            vars(replace(row, text=made.text)) | cut_mark(made.cut)
            for row, made in zip(batch, texts(batch), strict=True)
        ]

    def usable() -> Iterator[Caption]:
        for row in rows_in_parts(draft, rows, batch_size, make):
            marks.append(cut_mark(CUT in row))
            if is_usable(row["text"]):
                yield Caption(row["caption_id"], tidy(row["text"]), row["image_id"])

    count = write_captions(draft, usable())
    shutil.rmtree(draft.path(PARTS), ignore_errors=True)
    if not count:
        raise DataError(f"{draft.folder} would not hold a caption: the model wrote none")
    images = len({row.image_id for row in rows})
    notes = tell_cut(marks, most)
    return draft.finish(
        {"captions": count, "images": images}, without_text=len(rows) - count, **notes
    )
