"""Parts of captions and pairs: a few captions an image, some or a share of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gmail_align.artifacts import Artifact, Draft, begin, write_jsonl
from gmail_align.data.captions import iter_captions, write_captions
from gmail_align.data.mapped import blocks, distinct, spans, store_rows, zeros
from gmail_align.data.pairs import PAIRS, iter_pairs
from gmail_align.errors import UserError
from gmail_align.progress import say
from gmail_align.runtime import stable_seed

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
_PLACE: Final = np.dtype([("image", ">u8"), ("caption", ">u8"), ("row", ">u4")])
"""The hashes of a caption and of its image, and its row."""


def choose_captions(
    captions: Artifact,
    each: int | None,
    out: Path,
    *,
    images: int | float | None = None,
    rest: bool = False,
    seed: int = 0,
) -> Artifact:
    """Keep some captions of every image, or all captions of some images, or both.

    Which ones are kept depends on a hash of the seed and their ids alone, not on the others.

    Args:
        captions: The captions.
        each: How many of an image are kept; all where there are fewer, or where it is None.
        out: Folder of the new ``captions`` artifact, in the order of the old one.
        images: Number of images (an int), or their share (a float up to 1.0); None keeps all.
        rest: Keep what the same choice without ``rest`` leaves.
        seed: Changes the choice.

    Raises:
        UserError: neither number is given, one is not above 0, or nothing is left.
    """
    config = _config(each=each, images=images, rest=rest)
    draft = begin(out, "captions", config, {"captions": captions}, seed)
    if draft.complete:
        return draft.complete
    hashes = _hashes(captions, seed)
    kept = _chosen(hashes, _first(images))
    if each is not None:
        kept &= _few_each(captions, hashes, each, seed)
    return _write(draft, captions, hashes, kept, rest=rest)


def split(
    source: Artifact, shares: Mapping[str, float], out: Path, *, seed: int = 0
) -> dict[str, Artifact]:
    """Cut captions, or pairs, into parts that share no real image.

    Args:
        source: Captions or pairs.
        shares: Name of a part -> its share of the real images; ``train`` gets the rest. A hash of
            the seed and the image's id decides.
        out: Folder that gets a folder for each part.
        seed: Changes the choice.

    Raises:
        UserError: a share is not above 0, nothing is left to train on, or a part would be empty.
    """
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise UserError("shares of a split are above 0 and leave something to train on")
    made, before = {}, 0.0
    for name, share in {**shares, "train": 1 - sum(shares.values())}.items():
        config = {"part": name, "from": before, "share": share}
        draft = begin(out / name, source.kind, config, {"source": source}, seed)
        edges = (before, min(1.0, before + share))
        made[name] = draft.complete or _write_part(draft, source, partial(_between, edges), seed)
        before += share
    return made


def _between(edges: tuple[float, float], count: int) -> slice:
    """Return the places between two shares of an order."""
    return slice(*(round(edge * count) for edge in edges))


def hold_out(source: Artifact, share: float, out: Path, *, held: bool, seed: int = 0) -> Artifact:
    """Keep the captions, or pairs, of real images that are held out, or those of all others.

    Args:
        source: Captions or pairs.
        share: Share of the real images that is held out; a hash of seed and id chooses them.
        out: Folder of the new artifact, of the same kind.
        held: Whether the held-out part is kept, or the rest.
        seed: Changes the choice.

    Raises:
        UserError: one of the parts would be empty.
    """
    draft = begin(out, source.kind, {"share": share, "held": held}, {"source": source}, seed)
    if draft.complete:
        return draft.complete
    return _write_part(draft, source, _first(share), seed, rest=not held)


def _write_part(
    draft: Draft,
    source: Artifact,
    window: Callable[[int], slice],
    seed: int,
    *,
    rest: bool = False,
) -> Artifact:
    """Write the captions, or pairs, of images by their place in the order of their hashes."""
    hashes = _hashes(source, seed)
    kept = _chosen(hashes, window)
    if kept.all() if rest else not kept.any():
        count = len(distinct(hashes))
        raise UserError(f"{source.folder} has {count} images, too few for this share of them")
    return _write(draft, source, hashes, kept, rest=rest)


def choose_pairs(
    pairs: Artifact, images: int | float, out: Path, *, rest: bool = False, seed: int = 0
) -> Artifact:
    """Keep all pairs of some real images, chosen by a hash of the seed and the image's id.

    Args:
        pairs: The pairs.
        images: Number of real images (an int), or their share (a float up to 1.0).
        out: Folder of the new ``pairs`` artifact.
        rest: Keep the pairs of all other real images.
        seed: Changes the choice.

    Raises:
        UserError: the number is not above 0, or nothing is left.
    """
    config = _config(images=images, rest=rest)
    draft = begin(out, "pairs", config, {"pairs": pairs}, seed)
    if draft.complete:
        return draft.complete
    hashes = _hashes(pairs, seed)
    count = len(distinct(hashes))
    if images > max(count, 1):
        say(f"{pairs.folder} has {count} real images, not {images:g}: all of them are kept")
    return _write(draft, pairs, hashes, _chosen(hashes, _first(images)), rest=rest)


def _config(
    *, images: int | float | None, each: int | None = None, rest: bool = False
) -> dict[str, Any]:
    """Return the numbers that were given, and whether the rest is kept."""
    numbers = {"each": each, "images": images}
    given = {name: number for name, number in numbers.items() if number is not None}
    wrong = [name for name, number in given.items() if not 0 < number < float("inf")]
    if wrong or not given:
        what = f"{wrong[0]} is {given[wrong[0]]:g}" if wrong else "nothing says how many to choose"
        raise UserError(f"{what}: give a number above 0")
    return {**given, **({"rest": True} if rest else {})}


def _hashes(source: Artifact, seed: int) -> Hashes:
    """Return the hash of the real image of each caption, or pair; images have different ones."""
    if source.kind == "pairs":
        return _hashed((row.real_image_id for row in iter_pairs(source)), seed)
    return _hashed((row.image_id for row in iter_captions(source)), seed)


def _hashed(names: Iterable[str], seed: int) -> Hashes:
    parts = ([stable_seed(seed, name) for name in block] for block in blocks(names))
    return store_rows((np.array(part, np.uint64) for part in parts), np.uint64)


def _first(images: int | float | None) -> Callable[[int], slice]:
    """Return the window of a number of images, of a share of them, or of all."""

    def window(count: int) -> slice:
        if images is None:
            return slice(count)
        share = images < 1 or (images == 1 and isinstance(images, float))
        return slice(max(1, round(images * count)) if share else int(images))

    return window


def _chosen(hashes: Hashes, window: Callable[[int], slice]) -> Flags:
    """Mark the rows of the images in a window of the order of hashes."""
    order = distinct(hashes)
    some = order[window(len(order))]
    if not len(some):
        return zeros(len(hashes), np.bool_)
    first, last = some[0], some[-1]
    parts = (hashes[span] for span in spans(len(hashes)))
    return store_rows(((part >= first) & (part <= last) for part in parts), np.bool_)


def _few_each(captions: Artifact, hashes: Hashes, each: int, seed: int) -> Flags:
    """Mark the captions of each image that come first in the order of their own hashes."""
    own = _hashed((row.caption_id for row in iter_captions(captions)), seed)

    def numbered() -> Iterator[npt.NDArray[Any]]:
        for span in spans(len(own)):
            part = np.empty(span.stop - span.start, _PLACE)
            part["image"], part["caption"] = hashes[span], own[span]
            part["row"] = np.arange(span.start, span.stop)
            yield part

    places = store_rows(numbered(), _PLACE)
    places.view(f"S{_PLACE.itemsize}").sort()  # as bytes, where they lie
    flags, image, number = zeros(len(hashes), np.bool_), None, 0
    for span in spans(len(places)):
        part = places[span]
        for row, one in zip(part["row"].tolist(), part["image"].tolist(), strict=True):
            number = number + 1 if one == image else 0
            image = one
            flags[row] = number < each
    return flags


def _write(draft: Draft, source: Artifact, hashes: Hashes, kept: Flags, *, rest: bool) -> Artifact:
    """Write the captions, or pairs, that are marked; with ``rest`` those that are not.

    Raises:
        UserError: there are none.
    """
    if rest:
        np.logical_not(kept, out=kept)
    if not kept.any():
        raise UserError(f"nothing of {source.folder} is left by this choice: change its number")
    parts = (hashes[span][kept[span]] for span in spans(len(kept)))
    images = len(distinct(store_rows(parts, np.uint64)))
    if source.kind == "pairs":
        rows = map(vars, compress(iter_pairs(source), kept))
        return draft.finish({"pairs": write_jsonl(draft.path(PAIRS), rows), "real_images": images})
    count = write_captions(draft, compress(iter_captions(source), kept))
    return draft.finish({"captions": count, "images": images})
