"""Which caption belongs to which image."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gmail_align.artifacts import Artifact
from gmail_align.data.captions import iter_captions
from gmail_align.data.ids import generated_by_caption
from gmail_align.data.pairs import iter_pairs
from gmail_align.errors import DataError


def match_captions(image_ids: Collection[str], captions: Artifact) -> Iterator[tuple[str, str]]:
    """Yield (image id, caption) for every caption of the images, in the captions' order.

    Real images are matched by their own id, generated images by the caption they were generated
    from. A caption of a real image comes once, however many images were generated from it.

    Args:
        image_ids: Ids of real images, or of images generated from the captions.
        captions: An artifact of kind ``captions`` or ``pairs``.

    Raises:
        DataError: no caption belongs to any of the images.
        ArtifactError: the artifact is of another kind or damaged.
    """
    known = frozenset(image_ids)
    generated = {} if captions.kind == "pairs" else generated_by_caption(image_ids)
    if any(real in known for _, _, real, _ in _rows(captions, generated)):
        before = None
        for caption_id, text, real, _ in _rows(captions, generated):
            if real in known and caption_id != before:
                yield real, text
            before = caption_id
        return
    matched = False
    for _, text, _, names in _rows(captions, generated):
        for name in names:
            if name in known:
                matched = True
                yield name, text
    if not matched:
        raise DataError(
            f"no caption of {captions.folder} belongs to any of the {len(known)} images: give the"
            " captions of these images"
        )


def caption_texts(captions: Artifact) -> dict[str, str]:
    """Return caption id -> text of an artifact of kind ``captions`` or ``pairs``.

    Raises:
        ArtifactError: the artifact is of another kind or damaged.
    """
    return {caption_id: text for caption_id, text, _, _ in _rows(captions, {})}


def _rows(
    captions: Artifact, generated: dict[str, list[str]]
) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield caption id, text, real image id and generated image ids."""
    if captions.kind == "pairs":
        for pair in iter_pairs(captions):
            yield pair.caption_id, pair.text, pair.real_image_id, [pair.generated_image_id]
    else:
        for row in iter_captions(captions):
            yield row.caption_id, row.text, row.image_id, generated.get(row.caption_id, [])
