"""Pairs: a caption, the real image that it describes and an image generated from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gmail_align.artifacts import Artifact, Draft, begin, read_jsonl, write_jsonl
from gmail_align.data.captions import Caption, iter_captions
from gmail_align.data.counted import counted
from gmail_align.data.ids import ByCaption
from gmail_align.data.images import ImageStore
from gmail_align.data.mapped import blocks, spans, store_rows, zeros
from gmail_align.data.names import Names
from gmail_align.errors import ArtifactError, DataError, damage_explained
from gmail_align.runtime import stable_seed

PAIRS: Final = "pairs.jsonl"


@dataclass(frozen=True)
class Pair:
    """One caption with its real and one of its generated images."""

    caption_id: str
    text: str
    real_image_id: str
    generated_image_id: str


def make_pairs(captions: Artifact, real: Artifact, generated: Artifact, out: Path) -> Artifact:
    """Pair real and generated images by caption.

    One pair a generated image, in the order of the captions and then of ``k``. A caption whose
    real image was left out, or that has no generated image, gives no pair; both are counted in the
    manifest.

    Args:
        captions: Captions of the real images.
        real: The real images.
        generated: Images generated from the captions, named ``{caption id}-{k}``.
        out: Output folder.

    Returns:
        The ``pairs`` artifact.

    Raises:
        DataError: a generated image was made from another text than its caption, or there is no
            pair.
        ArtifactError: an input is of another kind, or the output folder belongs to other inputs.
    """
    inputs = {"captions": captions, "real": real, "generated": generated}
    draft = begin(out, "pairs", {"by": "caption"}, inputs)
    if draft.complete:
        return draft.complete
    store = ImageStore(generated)
    made_from = ByCaption(store.ids)

    def images_of(block: list[Caption], there: list[bool]) -> list[list[str]]:
        rows = made_from.rows([caption.caption_id for caption in block])
        for caption, own in compress(zip(block, rows, strict=True), there):
            _check_prompts(store, own, caption)
        return [store.ids.take(np.asarray(own, np.int64)) for own in rows]

    return _write_pairs(
        draft,
        captions,
        ImageStore(real),
        images_of,
        f"no caption of {captions.folder} has both a real image in {real.folder} and a "
        f"generated one in {generated.folder}: they come from different data sets",
    )


def make_pairs_by_text(
    captions: Artifact,
    real: Artifact,
    generated: Artifact,
    texts: Artifact,
    out: Path,
    *,
    seed: int = 0,
) -> Artifact:
    """Pair real images with generated ones that have the same text, such as their class.

    One pair a caption of a real image. The generated images of a text are dealt out in an order
    that the seed shuffles, and again from its start where there are too few.

    Args:
        captions: Captions of the real images.
        real: The real images.
        generated: The generated images.
        texts: Captions of the generated images.
        out: Output folder.
        seed: Of the order.

    Returns:
        The ``pairs`` artifact.

    Raises:
        DataError: no generated image has the text of a real one.
        ArtifactError: an input is of another kind, or the output folder belongs to other inputs.
    """
    inputs = {"captions": captions, "real": real, "generated": generated, "texts": texts}
    draft = begin(out, "pairs", {"by": "text"}, inputs, seed)
    if draft.complete:
        return draft.complete
    return _write_pairs(
        draft,
        captions,
        ImageStore(real),
        _Dealt(texts, ImageStore(generated), seed).images_of,
        f"no generated image in {generated.folder} has the text of a real one: pair by text needs "
        "captions, such as class names, that both sides share",
    )


_DEALT: Final = np.dtype([("text", ">u4"), ("order", ">u8"), ("image", ">u4")])
"""A generated image: first row of its text, place among the images of that text, own row."""


class _Dealt:
    """Generated images by their text, as numbers: each text's are dealt out in a shuffled order.

    Args:
        texts: Captions of the images.
        images: The images; captions of others are passed over.
        seed: Of the order.
    """

    def __init__(self, texts: Artifact, images: ImageStore, seed: int) -> None:
        self._ids = images.ids
        self._texts = Names(row.text for _, row in self._known(texts))
        places = store_rows(self._numbered(texts, seed), _DEALT)
        places.view(f"S{_DEALT.itemsize}").sort()  # as bytes, where they lie
        self._firsts = store_rows((places[span]["text"] for span in spans(len(places))), np.int64)
        """The first row of each image's text, which stands for the text; ascending."""
        self._rows = store_rows((places[span]["image"] for span in spans(len(places))), np.int64)
        self._next = zeros(len(places), np.int64)

    def _known(self, texts: Artifact) -> Iterator[tuple[int, Caption]]:
        """Yield the row of each image that has a text, and its caption."""
        for block in blocks(iter_captions(texts)):
            rows = self._ids.rows(caption.image_id for caption in block).tolist()
            yield from ((row, own) for row, own in zip(rows, block, strict=True) if row >= 0)

    def _numbered(self, texts: Artifact, seed: int) -> Iterator[npt.NDArray[Any]]:
        for block in blocks(self._known(texts)):
            places = np.empty(len(block), _DEALT)
            places["text"] = self._texts.rows(caption.text for _, caption in block)
            places["order"] = [stable_seed(seed, caption.image_id) for _, caption in block]
            places["image"] = [row for row, _ in block]
            yield places

    def images_of(self, block: list[Caption], there: list[bool]) -> list[list[str]]:
        """Return the next image of each caption's text, counted where its real image is there."""
        texts = self._texts.rows(caption.text for caption in block)
        starts = np.searchsorted(self._firsts, texts).tolist()
        stops = np.searchsorted(self._firsts, texts, side="right").tolist()
        places = np.zeros(len(block), np.int64)
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            if stop > start:
                dealt = int(self._next[start])
                self._next[start] += there[number]
                places[number] = start + dealt % (stop - start)
        names = self._ids.take(self._rows[places]) if len(self._rows) else [""] * len(block)
        known = (texts >= 0).tolist()
        return [[name] if one else [] for name, one in zip(names, known, strict=True)]


def _write_pairs(
    draft: Draft,
    captions: Artifact,
    reals: ImageStore,
    images_of: Callable[[list[Caption], list[bool]], list[list[str]]],
    nothing: str,
) -> Artifact:
    """Write one pair for every generated image of every caption whose real image is there.

    Args:
        draft: The artifact.
        captions: Captions of the real images.
        reals: The real images.
        images_of: Returns the generated images of captions; is told whose real image is there.
        nothing: What to say when there is no pair.
    """
    counts = {"pairs": 0, "real_images": 0, "without_real": 0, "without_generated": 0}
    used = zeros(len(reals), np.bool_)

    def rows() -> Iterator[dict[str, str]]:
        for block in blocks(iter_captions(captions)):
            places = reals.ids.rows(caption.image_id for caption in block)
            there = (places >= 0).tolist()
            images = images_of(block, there)
            counts["without_real"] += there.count(False)
            counts["without_generated"] += images.count([])
            for caption, own, place in zip(block, images, places.tolist(), strict=True):
                for image_id in own if place >= 0 else ():
                    used[place] = True
                    counts["pairs"] += 1
                    yield vars(Pair(caption.caption_id, caption.text, caption.image_id, image_id))

    write_jsonl(draft.path(PAIRS), rows())
    if not counts["pairs"]:
        raise DataError(nothing)
    return draft.finish({**counts, "real_images": int(np.count_nonzero(used))})


def read_pairs(artifact: Artifact) -> list[Pair]:
    """Return the pairs of an artifact in their order.

    Raises:
        ArtifactError: the artifact holds something else, or its file is damaged.
    """
    return list(iter_pairs(artifact))


def iter_pairs(artifact: Artifact) -> Iterator[Pair]:
    """Yield the pairs of an artifact in their order, without holding them all.

    Raises:
        ArtifactError: the artifact holds something else, or its file is damaged.
    """
    if artifact.kind != "pairs":
        raise ArtifactError(f"{artifact.folder} holds {artifact.kind}, but pairs are needed here")
    advice = f"delete {artifact.folder} and pair again"
    with damage_explained(artifact.path(PAIRS), ArtifactError, advice):
        for row in counted(artifact, read_jsonl(artifact.path(PAIRS))):
            if not all(isinstance(value, str) for value in row.values()):
                raise ValueError("a value is not text")
            yield Pair(**row)


def _check_prompts(store: ImageStore, rows: list[int], caption: Caption) -> None:
    """Refuse images that were generated from another text than their caption."""
    prompts = store.texts.take(np.asarray(rows, np.int64))
    for row, prompt in zip(rows, prompts, strict=True):
        if prompt and prompt != caption.text:
            raise DataError(
                f"image {store.ids[row]} in {store.artifact.folder} was generated from "
                f"{prompt[:80]!r}, but caption {caption.caption_id} is {caption.text[:80]!r}: "
                "generate it from these captions"
            )
