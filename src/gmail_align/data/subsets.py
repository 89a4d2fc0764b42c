"""Parts of captions and pairs: a few captions an image, pairs of a share of the real images."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from gmail_align.artifacts import Artifact, begin, write_jsonl
from gmail_align.data.captions import Caption, read_captions, write_captions
from gmail_align.data.pairs import PAIRS, read_pairs
from gmail_align.runtime import stable_seed


def choose_captions(captions: Artifact, each: int, out: Path, *, seed: int = 0) -> Artifact:
    """Keep ``each`` captions of every image, chosen by a hash of seed and caption id.

    Args:
        captions: The captions.
        each: How many of an image are kept; all where there are fewer.
        out: Folder of the new ``captions`` artifact, in the order of the old one.
        seed: Changes the choice.
    """
    draft = begin(out, "captions", {"each": each}, {"captions": captions}, seed)
    if draft.complete:
        return draft.complete
    rows = read_captions(captions)
    by_image: dict[str, list[Caption]] = defaultdict(list)
    for row in rows:
        by_image[row.image_id].append(row)
    kept = {
        row.caption_id
        for own in by_image.values()
        for row in sorted(own, key=lambda row: stable_seed(seed, row.caption_id))[:each]
    }
    count = write_captions(draft, (row for row in rows if row.caption_id in kept))
    return draft.finish({"captions": count, "images": len(by_image)})


def keep_share(pairs: Artifact, share: float, out: Path, *, seed: int = 0) -> Artifact:
    """Keep the pairs of a share of the real images, chosen by a hash of seed and image id.

    Args:
        pairs: The pairs.
        share: Share of the real images, above 0 and at most 1.
        out: Folder of the new ``pairs`` artifact.
        seed: Changes the choice.
    """
    draft = begin(out, "pairs", {"share": share}, {"pairs": pairs}, seed)
    if draft.complete:
        return draft.complete
    rows = read_pairs(pairs)
    images = sorted({row.real_image_id for row in rows}, key=lambda name: stable_seed(seed, name))
    kept = set(images[: max(1, round(share * len(images)))])
    chosen = [row for row in rows if row.real_image_id in kept]
    write_jsonl(draft.path(PAIRS), [asdict(row) for row in chosen])
    return draft.finish({"pairs": len(chosen), "real_images": len(kept)})
