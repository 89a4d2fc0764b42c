"""Re-assignment (SynC): each caption gets the image of the pool that suits it best.

A generator often draws something else than the caption says, and that may be just what another
caption says. The image is kept where retrieval by it finds the caption again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gmail_align.artifacts import atomic_file
from gmail_align.data.ids import split_number
from gmail_align.data.images import ImageStore
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.errors import DataError
from gmail_align.metrics.ranks import TIE, full_precision, unit_rows

REASSIGNED: Final = "reassigned.parquet"
_SCORES: Final = 2**24
_TEXTS: Final = 256


class Best(NamedTuple):
    """The image of each text, and how well the text is found again by it."""

    image: Int64[Tensor, " t"]
    """Row of the image with the largest cosine; the first of equal ones."""
    cosine: Float[Tensor, " t"]
    """That cosine."""
    before: Int64[Tensor, " t"]
    """Other texts that suit this image better."""


@dataclass(frozen=True)
class Reassigned:
    """The image that a caption gets, and whether it is kept."""

    caption_id: str
    text: str
    image_id: str
    cosine: float
    before: int
    kept: bool


def best_images(texts: Float[Tensor, "t d"], images: Float[Tensor, "n d"]) -> Best:
    """Find the best image of every text, and the texts that suit that image better.

    Memory is that of one block of texts by all images, and by all texts.

    Args:
        texts: Features of different texts.
        images: Features of the pool.
    """
    with full_precision(texts.device):
        rows, pool = unit_rows(texts), unit_rows(images)
        parts = []
        for block in rows.split(max(1, _SCORES // max(len(rows), len(pool)))):
            scores = block @ pool.T
            reached = scores >= scores.amax(1, keepdim=True) - TIE
            image = reached.byte().argmax(1)
            cosine = scores.gather(1, image[:, None])[:, 0]
            better = (pool[image] @ rows.T) > cosine[:, None] + TIE
            parts.append((image, cosine, better.sum(1)))
    return Best(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def reassign(
    store: ImageStore,
    pool: Sequence[str],
    features: Float[Tensor, "n d"],
    encoder: GmailEncoder,
    within: int,
) -> list[Reassigned]:
    """Give every caption of a store one image of the pool.

    Args:
        store: Generated images; their prompts are the captions.
        pool: Ids of the images that captions may get.
        features: Frozen features of the pool.
        encoder: The encoder of the features.
        within: The caption must be among so many that suit the image best.

    Raises:
        DataError: images are not named after the captions that they were generated from.
    """
    captions = _captions_of(store)
    texts = {text: row for row, text in enumerate(dict.fromkeys(captions.values()))}
    names = list(texts)
    encoder.tell_cut(names)
    with torch.no_grad():
        parts = [
            encoder.embed_texts(names[start : start + _TEXTS], Route.FROZEN)
            for start in range(0, len(names), _TEXTS)
        ]
    best = best_images(torch.cat(parts), features.to(encoder.device))
    rows = zip(*(column.tolist() for column in best), strict=True)
    of_text = [(pool[image], cosine, before) for image, cosine, before in rows]
    return [
        Reassigned(caption, text, *of_text[texts[text]], kept=of_text[texts[text]][2] < within)
        for caption, text in captions.items()
    ]


def _captions_of(store: ImageStore) -> dict[str, str]:
    """Return caption id -> text of every caption that some image was generated from."""
    captions = {}
    for image_id in store.ids:
        parts, text = split_number(image_id), store.record(image_id).text
        if parts is None or not text:
            raise DataError(
                f"image {image_id} in {store.artifact.folder} does not name its caption: reassign "
                "images that gmail-align synthesize made"
            )
        captions[parts[0]] = text
    return captions


def write_reassigned(path: Path, rows: Sequence[Reassigned]) -> None:
    """Write what every caption gets."""
    with atomic_file(path) as file:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), file)


def read_reassigned(path: Path) -> list[Reassigned]:
    """Return what every caption gets."""
    return [Reassigned(**row) for row in pq.read_table(path).to_pylist()]
