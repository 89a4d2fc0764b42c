"""Retrieval of images by captions and of captions by images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.data.protocols import captions_each
from gmail_align.data.references import CaptionImages, first_captions, open_caption_images
from gmail_align.errors import DataError
from gmail_align.features.store import Features, open_features
from gmail_align.items import Items
from gmail_align.metrics.compat import Compat, parse_compat
from gmail_align.metrics.retrieval_hits import RetrievalHits, require_retrieval, retrieval_hits
from gmail_align.progress import say
from gmail_align.results import Result, begin_result


def score(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "m d"],
    text_image: Int[Tensor, " m"],
    compat: Compat | None = None,
) -> RetrievalHits:
    """Search both ways; see :func:`gmail_align.metrics.retrieval_hits.retrieval_hits`.

    Args:
        images: Features.
        texts: Features.
        text_image: Row in ``images`` of each text's image.
        compat: Another evaluator whose rule for ties and precision is followed.

    Raises:
        UserError: features are not finite or of different width, or a label is out of range.
    """
    return retrieval_hits(images, texts, text_image, compat=compat)


def evaluate_retrieval(
    images: Path | Artifact,
    texts: Path | Artifact,
    captions: Path | Artifact,
    out: Path | None = None,
    *,
    protocol: str = "retrieval",
    subset: bool = False,
    compat: str | None = None,
    seed: int = 0,
) -> Result:
    """Score image-text retrieval both ways.

    The images that are searched are those of the captions, in the order in which they first come.
    Of plain files they are all rows; an image without a text counts as not found.

    Args:
        images: Image features: an artifact, or a ``.npy`` file.
        texts: Caption features of the same encoder.
        captions: The captions, or a ``.npy`` file with the row of each text's image. A protocol may
            take only the first few of an image.
        out: Folder of the result; None keeps nothing.
        protocol: Name kept with the numbers; that of a known protocol asserts its counts.
        subset: Whether the captions are declared a part of that protocol's.
        compat: Another evaluator, by :class:`gmail_align.metrics.compat.Compat`, whose rule for
            ties and precision is followed.
        seed: Of the bootstrap.

    Raises:
        DataError: a caption or an image does not have one feature, or see
            :func:`gmail_align.results.begin_result`.
        UserError: the features are not finite or of different width.
    """
    rule = None if compat is None else parse_compat(compat)
    pictures, read, given = (
        open_features(images),
        open_features(texts),
        open_caption_images(captions),
    )
    pairs, gallery = _searched(pictures, given, protocol)
    n, without = _counts(pairs, gallery)
    result = begin_result(
        out,
        {"images": pictures, "texts": read, "captions": given},
        {"compat": compat},
        protocol=protocol,
        task="retrieval",
        n=n,
        subset=subset,
        seed=seed,
    )
    if result.complete is not None:
        return result.complete
    if without > 0:
        say(f"{without} of {len(gallery)} images do not have a text: they count as not found")
    hits = score(*_rows(pictures, read, given, pairs, gallery), rule)
    items = {"": Items(result.protocol, tuple(gallery), hits.columns())}
    how = {"compat": compat} if compat else {}
    return result.finish(hits.estimates(seed=seed), items=items, details=how)


def _searched(
    images: Features, given: CaptionImages, protocol: str
) -> tuple[list[tuple[str, str]], Sequence[str]]:
    """Return (image id, text id) of every text that takes part, and the images searched."""
    rows = ((image, text) for text, image in given.rows)
    pairs = first_captions(rows, captions_each(protocol))
    return pairs, images.ids if given.complete else list(dict.fromkeys(one for one, _ in pairs))


def _counts(pairs: Sequence[tuple[str, str]], gallery: Sequence[str]) -> tuple[dict[str, int], int]:
    """Return how many images and texts there are, and how many images do not have a text."""
    without = len(gallery) - len({image for image, _ in pairs})
    n = {"images": len(gallery), "texts": len(pairs)}
    return n | ({"images_without_text": without} if without > 0 else {}), without


def _rows(
    images: Features,
    texts: Features,
    given: CaptionImages,
    pairs: list[tuple[str, str]],
    gallery: Sequence[str],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of the images and of the texts, and whose each text is."""
    if len({text for _, text in pairs}) != len(pairs):
        raise DataError("a caption id comes more than once: give each caption once")
    if given.complete and len(given.rows) != len(texts.ids):
        raise DataError(
            f"{texts.name} has {len(texts.ids)} rows, and {len(given.rows)} images were named: "
            "name the image of each text"
        )
    place = {name: row for row, name in enumerate(gallery)}
    outside = [image for image, _ in pairs if image not in place]
    if outside:
        raise DataError(
            f"{len(outside)} of {len(pairs)} texts belong to an image that {images.name} does not "
            f"have, the first of them to {outside[0]}"
        )
    rows = (
        images.array if given.complete else images.array[images.rows(gallery)],
        texts.array[texts.rows(text for _, text in pairs)],
        torch.tensor([place[image] for image, _ in pairs], dtype=torch.int64),
    )
    require_retrieval(*rows)
    return rows
