"""Pairs: a caption, the real image that it describes and an image generated from it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from gmail_align.artifacts import Artifact, Draft, begin, read_jsonl, write_jsonl
from gmail_align.data.captions import Caption, iter_captions
from gmail_align.data.counted import counted
from gmail_align.data.ids import split_number
from gmail_align.data.images import ImageStore
from gmail_align.data.names import Names
from gmail_align.data.unique import UniqueIds
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
    generateds = ImageStore(generated)
    made_from = Names((split_number(image_id) or ("", 0))[0] for image_id in generateds.ids)

    def images_of(caption: Caption, there: bool) -> list[str]:
        rows = made_from.every_row(caption.caption_id)
        for row in rows if there else ():
            _check_prompt(generateds, row, caption)
        ids = [generateds.ids[row] for row in rows]
        return sorted(ids, key=lambda image_id: int(image_id.rpartition("-")[2]))

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


class _Dealt:
    """Generated images by their text, as numbers: each text's are dealt out in a shuffled order.

    Args:
        texts: Captions of the images.
        images: The images; captions of others are passed over.
        seed: Of the order.
    """

    def __init__(self, texts: Artifact, images: ImageStore, seed: int) -> None:
        rows, hashes = array("q"), array("Q")

        def known() -> Iterator[str]:
            for caption in iter_captions(texts):
                if (row := images.ids.row(caption.image_id)) >= 0:
                    rows.append(row)
                    hashes.append(stable_seed(seed, caption.image_id))
                    yield caption.text

        self._ids, self._texts = images.ids, Names(known())
        firsts = self._texts.rows(self._texts)
        order = np.lexsort((np.asarray(hashes), firsts))
        self._rows = np.asarray(rows)[order]
        self._firsts = firsts[order]
        """The first row of each image's text, which stands for the text; ascending."""
        self._next = np.zeros(len(order), np.int64)

    def images_of(self, caption: Caption, there: bool) -> list[str]:
        """Return the next image of a caption's text, and count it if its real image is there."""
        text = self._texts.row(caption.text)
        if text < 0:
            return []
        start, stop = np.searchsorted(self._firsts, [text, text + 1]).tolist()
        number = int(self._next[text])
        self._next[text] += there
        return [self._ids[int(self._rows[start + number % (stop - start)])]]


def _write_pairs(
    draft: Draft,
    captions: Artifact,
    reals: ImageStore,
    images_of: Callable[[Caption, bool], list[str]],
    nothing: str,
) -> Artifact:
    """Write one pair for every generated image of every caption whose real image is there.

    Args:
        draft: The artifact.
        captions: Captions of the real images.
        reals: The real images.
        images_of: Returns a caption's generated images; is told whether its real image is there.
        nothing: What to say when there is no pair.
    """
    counts = {"pairs": 0, "real_images": 0, "without_real": 0, "without_generated": 0}
    used = UniqueIds()

    def rows() -> Iterator[dict[str, str]]:
        for caption in iter_captions(captions):
            there = caption.image_id in reals
            images = images_of(caption, there)
            counts["without_real"] += not there
            counts["without_generated"] += not images
            for image_id in images if there else ():
                used.add(caption.image_id)
                counts["pairs"] += 1
                yield asdict(Pair(caption.caption_id, caption.text, caption.image_id, image_id))

    write_jsonl(draft.path(PAIRS), rows())
    if not counts["pairs"]:
        raise DataError(nothing)
    return draft.finish({**counts, "real_images": len(used)})


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


def _check_prompt(store: ImageStore, row: int, caption: Caption) -> None:
    prompt = store.text(row)
    if prompt and prompt != caption.text:
        raise DataError(
            f"image {store.ids[row]} in {store.artifact.folder} was generated from "
            f"{prompt[:80]!r}, but caption {caption.caption_id} is {caption.text[:80]!r}: "
            "generate it from these captions"
        )
