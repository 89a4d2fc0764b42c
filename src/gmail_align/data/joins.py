"""Which caption belongs to which image."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gmail_align.artifacts import Artifact
from gmail_align.data.captions import iter_captions
from gmail_align.data.ids import ByCaption
from gmail_align.data.mapped import blocks
from gmail_align.data.names import Names, Row
from gmail_align.data.pairs import Pair, iter_pairs
from gmail_align.errors import DataError


def match_captions(image_ids: Collection[str], captions: Artifact) -> Iterator[tuple[str, str]]:
    """Yield (image id, caption) for every caption of the images, in the captions' order.

    Real images are matched by their own id, generated images by the caption they were generated
    from. A caption of a real image comes once, however many images were generated from it. Memory
    does not grow with the images, nor with the captions.

    Args:
        image_ids: Ids of real images, or of images generated from the captions.
        captions: An artifact of kind ``captions`` or ``pairs``.

    Raises:
        DataError: no caption belongs to any of the images.
        ArtifactError: the artifact is of another kind or damaged.
    """
    known = image_ids if isinstance(image_ids, Names) else Names(image_ids)
    if any((_real_rows(known, block) >= 0).any() for block in blocks(_rows(captions))):
        before = None
        for block in blocks(_rows(captions)):
            for row, place in zip(block, _real_rows(known, block).tolist(), strict=True):
                if place >= 0 and row.caption_id != before:
                    yield row.real_image_id, row.text
                before = row.caption_id
        return
    images = None if captions.kind == "pairs" else ByCaption(known)
    matched = False
    for block in blocks(_rows(captions)):
        if images is None:
            rows = known.rows(row.generated_image_id for row in block)
            names = [
                [row.generated_image_id] * (place >= 0)
                for row, place in zip(block, rows.tolist(), strict=True)
            ]
        else:
            names = images.names([row.caption_id for row in block])
        for row, own in zip(block, names, strict=True):
            for name in own:
                matched = True
                yield name, row.text
    if not matched:
        count = len(set(image_ids))
        raise DataError(
            f"no caption of {captions.folder} belongs to any of the {count} images: give the"
            " captions of these images"
        )


def caption_texts(captions: Artifact) -> dict[str, str]:
    """Return caption id -> text of an artifact of kind ``captions`` or ``pairs``.

    Raises:
        ArtifactError: the artifact is of another kind or damaged.
    """
    return {row.caption_id: row.text for row in _rows(captions)}


def _rows(captions: Artifact) -> Iterator[Pair]:
    """Yield pairs, or captions as pairs without a generated image."""
    if captions.kind == "pairs":
        yield from iter_pairs(captions)
    else:
        for row in iter_captions(captions):
            yield Pair(row.caption_id, row.text, row.image_id, "")


def _real_rows(known: Names, block: list[Pair]) -> Row:
    return known.rows(row.real_image_id for row in block)
