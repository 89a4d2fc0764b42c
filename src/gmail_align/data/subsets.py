"""Parts of captions and pairs: a few captions an image, some or a share of the images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, Draft, begin, write_jsonl
from gmail_align.data.captions import Caption, read_captions, write_captions
from gmail_align.data.pairs import PAIRS, read_pairs
from gmail_align.errors import UserError
from gmail_align.progress import say
from gmail_align.runtime import stable_seed


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
    rows = read_captions(captions)
    by_image: dict[str, list[Caption]] = defaultdict(list)
    for row in rows:
        by_image[row.image_id].append(row)
    chosen = _some(by_image, images, seed)
    kept = {
        row.caption_id
        for name in chosen
        for row in sorted(by_image[name], key=lambda row: stable_seed(seed, row.caption_id))[:each]
    }
    wanted = [row for row in rows if (row.caption_id in kept) != rest]
    _require_rows(wanted, captions)
    count = write_captions(draft, wanted)
    return draft.finish({"captions": count, "images": len({row.image_id for row in wanted})})


def _require_rows(rows: Collection[object], source: Artifact) -> None:
    if not rows:
        raise UserError(f"nothing of {source.folder} is left by this choice: change its number")


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
        cut = partial(_cut, window=(before, min(1.0, before + share)), seed=seed)
        made[name] = draft.complete or _keep(draft, source, cut)
        before += share
    return made


def _cut(names: Set[str], window: tuple[float, float], seed: int) -> Set[str]:
    """Return the images whose place in the order of their hashes lies in a window of shares."""
    first, last = (round(edge * len(names)) for edge in window)
    return set(sorted(names, key=lambda name: stable_seed(seed, name))[first:last])


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

    def choose(names: Set[str]) -> Set[str]:
        chosen = _some(names, share, seed)
        return chosen if held else names - chosen

    return _keep(draft, source, choose)


def _keep(draft: Draft, source: Artifact, choose: Callable[[Set[str]], Set[str]]) -> Artifact:
    """Write the captions, or pairs, of the real images that are chosen."""
    pairs = read_pairs(source) if source.kind == "pairs" else []
    captions = [] if pairs else read_captions(source)
    names = {row.real_image_id for row in pairs} | {row.image_id for row in captions}
    kept = choose(names)
    if not kept:
        raise UserError(f"{source.folder} has {len(names)} images, too few for this share of them")
    if pairs:
        rows = [asdict(row) for row in pairs if row.real_image_id in kept]
        write_jsonl(draft.path(PAIRS), rows)
        return draft.finish({"pairs": len(rows), "real_images": len(kept)})
    count = write_captions(draft, (row for row in captions if row.image_id in kept))
    return draft.finish({"captions": count, "images": len(kept)})


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
    rows = read_pairs(pairs)
    names = {row.real_image_id for row in rows}
    if images > max(len(names), 1):
        say(f"{pairs.folder} has {len(names)} real images, not {images:g}: all of them are kept")
    kept = _some(names, images, seed)
    chosen = [row for row in rows if (row.real_image_id in kept) != rest]
    _require_rows(chosen, pairs)
    write_jsonl(draft.path(PAIRS), [asdict(row) for row in chosen])
    count = len({row.real_image_id for row in chosen})
    return draft.finish({"pairs": len(chosen), "real_images": count})


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


def _some(names: Collection[str], images: int | float | None, seed: int) -> set[str]:
    """Return the chosen ones of the images' names."""
    if images is None:
        return set(names)
    share = images < 1 or (images == 1 and isinstance(images, float))
    count = max(1, round(images * len(names))) if share else int(images)
    return set(sorted(names, key=lambda name: stable_seed(seed, name))[:count])
