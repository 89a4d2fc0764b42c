"""The stage: generated images are scored, and written again without those that fail."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from gmail_align.artifacts import Artifact, Draft, atomic_file, begin, beside, read_jsonl
from gmail_align.data.hashes import HashArray, difference_hash, hash_images, near_pairs
from gmail_align.data.ids import numbered
from gmail_align.data.images import (
    QUARANTINE,
    ImageStore,
    Quarantined,
    Sample,
    finish_images,
    read_shard,
    shard_name,
    write_shard,
)
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.engine import Job, run_shards
from gmail_align.errors import ArtifactError, ConfigError, DataError
from gmail_align.features.run import extract_images
from gmail_align.features.store import open_features
from gmail_align.metrics.clipscore import clip_score
from gmail_align.progress import track
from gmail_align.synthesis.config import FilterConfig
from gmail_align.synthesis.reassign import (
    REASSIGNED,
    Reassigned,
    read_reassigned,
    reassign,
    write_reassigned,
)

SCORES: Final = "scores.parquet"
_SHARD: Final = 1000
_TEXTS: Final = 256


def count_reasons(filtered: Artifact) -> Counter[str]:
    """Return how many images were left out of filtered ones, by the kind of the reason."""
    rows = read_jsonl(filtered.path(QUARANTINE))
    return Counter(str(row["reason"]).partition(" of ")[0].partition(":")[0] for row in rows)


@dataclass(frozen=True)
class Match:
    """The image that another one resembles, and how much."""

    row: int
    bits: int
    """Bits in which the perceptual hashes differ."""
    cosine: float | None
    """Cosine of the features; None without features."""


@dataclass
class Score:
    """What is known of one image, and why it is left out (None: it is kept)."""

    id: str
    spread: float
    """Standard deviation of its grey values."""
    clip_score: float | None = None
    duplicate_of: str | None = None
    duplicate_bits: int | None = None
    duplicate_cosine: float | None = None
    copy_of: str | None = None
    copy_in: str | None = None
    copy_bits: int | None = None
    copy_cosine: float | None = None
    reason: str | None = None


def filter_images(
    config: FilterConfig,
    images: Artifact,
    photos: Sequence[Artifact],
    out: Path,
    encoder: GmailEncoder | None = None,
) -> Artifact:
    """Score generated images and keep those that pass, with ``scores.parquet`` for all of them.

    Features are kept beside the output, in ``OUT.features``.

    Args:
        config: The thresholds.
        images: The generated images.
        photos: Images of which none may be a copy: evaluation and training photos.
        out: Output folder.
        encoder: Gives CLIP scores, and confirms near-duplicates and copies by feature distance.

    Returns:
        An ``images`` artifact; its ``quarantine.jsonl`` names what was left out, with the reason.

    Raises:
        ConfigError: a CLIP score is asked for without an encoder.
        DataError: nothing is left.
        ArtifactError: an input does not hold images, or the folder belongs to another run.
    """
    asked = "reassign" if config.reassign else "min_clip_score"
    if (config.reassign or config.min_clip_score is not None) and encoder is None:
        raise ConfigError(f"{asked} needs an encoder: name one with --encoder")
    for artifact in (images, *photos):
        if artifact.kind != "images":
            raise ArtifactError(f"{artifact.folder} holds {artifact.kind}: images are needed here")
    inputs: dict[str, Artifact | str] = {"images": images}
    inputs |= {f"photos-{number}": artifact for number, artifact in enumerate(photos)}
    settings = config.model_dump(mode="json")
    settings |= {"encoder": encoder.base_fingerprint if encoder else None}
    draft = begin(out, "images", settings, inputs)
    if draft.complete:
        return draft.complete
    work, store = beside(out, ".features"), ImageStore(images)
    if draft.path(SCORES).exists():
        scores = [Score(**row) for row in pq.read_table(draft.path(SCORES)).to_pylist()]
    else:
        scores = _score(config, images, photos, work, encoder)
        _write_scores(draft, scores)
    places = [Place(score.id, score.id, score.reason) for score in scores]
    if config.reassign and encoder is not None:
        if not draft.path(REASSIGNED).exists():
            pool = [score.id for score in scores if score.reason is None]
            features = open_features(extract_images(images, encoder, Route.FROZEN, work / "images"))
            own = features.array[features.rows(pool)]
            rows = reassign(store, pool, own, encoder, config.found_within)
            write_reassigned(draft.path(REASSIGNED), rows)
        places = list(map(_place_of, read_reassigned(draft.path(REASSIGNED))))
    return _write_kept(draft, store, places)


@dataclass(frozen=True)
class Place:
    """One image of the result: its id, the image that it is, and why it is left out."""

    id: str
    image_id: str
    reason: str | None
    caption: str | None = None
    """The text that it was assigned to, where that is not its own prompt."""


def _place_of(row: Reassigned) -> Place:
    reason = None
    if not row.kept:
        reason = f"no image that finds its caption: {row.image_id} finds {row.before} others first"
    return Place(numbered(row.caption_id, 0), row.image_id, reason, row.text)


def duplicates(
    hashes: HashArray, bits: int, features: Float[Tensor, "n d"] | None, cosine: float
) -> dict[int, Match]:
    """Find images that nearly equal one that stands before them.

    A group of near-duplicates keeps its first image: a row is compared with rows that are kept.

    Args:
        hashes: Perceptual hashes, shape (n, 16).
        bits: Most bits in which near-duplicates differ.
        features: Features of the same rows; None compares hashes alone.
        cosine: Least cosine of near-duplicates.

    Returns:
        Row -> the first kept row that it resembles.
    """
    matches: dict[int, Match] = {}
    near = (pair for pair in near_pairs(hashes, hashes, bits) if pair[0] < pair[1])
    for first, second, differing in sorted(near):
        if first in matches or second in matches:
            continue
        alike = None if features is None else _cosine(features[first], features[second])
        if alike is None or alike >= cosine:
            matches[second] = Match(first, differing, alike)
    return matches


def copies(
    hashes: HashArray,
    photos: HashArray,
    bits: int,
    features: tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]] | None,
    cosine: float,
) -> dict[int, Match]:
    """Find images that are copies of photos, and the nearest photo of each.

    Args:
        hashes: Perceptual hashes of the images, shape (n, 16).
        photos: Perceptual hashes of the photos, shape (m, 16).
        bits: Most bits in which a copy differs.
        features: Features of both; None compares hashes alone.
        cosine: Least cosine of a copy.
    """
    matches: dict[int, Match] = {}
    for row, photo, differing in near_pairs(hashes, photos, bits):
        alike = None if features is None else _cosine(features[0][row], features[1][photo])
        best = matches.get(row)
        if (alike is None or alike >= cosine) and (best is None or differing < best.bits):
            matches[row] = Match(photo, differing, alike)
    return matches


def spread(pixels: npt.NDArray[np.uint8]) -> float:
    """Return the standard deviation of an image's grey values, from 0 (blank) to 127.5."""
    return float(pixels.astype(np.float32).mean(axis=2).std())


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.float(), other.float(), dim=0))


def _score(
    config: FilterConfig,
    images: Artifact,
    photos: Sequence[Artifact],
    work: Path,
    encoder: GmailEncoder | None,
) -> list[Score]:
    store = ImageStore(images)
    scores, hashes = _look_at(store)
    features = _features(images, work / "images", encoder)
    if encoder is not None and features is not None:
        for score, value in zip(scores, _clip_scores(store, features, encoder), strict=True):
            score.clip_score = value
    # Blank images resemble each other and nothing else.
    rows = np.flatnonzero([score.spread >= config.min_spread for score in scores])
    kept = None if features is None else features[torch.from_numpy(rows)]
    same = duplicates(hashes[rows], config.duplicate_bits, kept, config.duplicate_cosine)
    for row, match in same.items():
        score = scores[rows[row]]
        score.duplicate_of = store.ids[rows[match.row]]
        score.duplicate_bits, score.duplicate_cosine = match.bits, match.cosine
    for number, artifact in enumerate(photos):
        theirs = _features(artifact, work / f"photos-{number}", encoder)
        both = None if kept is None or theirs is None else (kept, theirs)
        photo_store = ImageStore(artifact)
        looks = hash_images(photo_store, f"hash {artifact.folder.name}")
        near = copies(hashes[rows], looks, config.copy_bits, both, config.copy_cosine)
        for row, match in near.items():
            score = scores[rows[row]]
            score.copy_of, score.copy_in = photo_store.ids[match.row], str(artifact.folder)
            score.copy_bits, score.copy_cosine = match.bits, match.cosine
    for score in scores:
        score.reason = _reason(score, config)
    return scores


def _reason(score: Score, config: FilterConfig) -> str | None:
    """Return why an image is left out; the first of several reasons."""
    if score.spread < config.min_spread:
        return f"blank: its grey values spread by {score.spread:.2f}"
    if score.copy_of is not None:
        return f"a copy of {score.copy_of} in {score.copy_in}"
    low = config.min_clip_score
    if low is not None and score.clip_score is not None and score.clip_score < low:
        return f"a CLIP score of {score.clip_score:.3f}, below {low}"
    if score.duplicate_of is not None and not config.keep_duplicates:
        return f"a near-duplicate of {score.duplicate_of}"
    return None


def _look_at(store: ImageStore) -> tuple[list[Score], HashArray]:
    """Decode every image once: its spread and its hash."""

    def look(image_id: str) -> tuple[Score, HashArray]:
        image = store.read(image_id)
        return Score(image_id, spread(np.asarray(image))), difference_hash(image)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        looks = (one for ids in _chunks(store.ids, _SHARD) for one in pool.map(look, ids))
        scores, hashes = zip(*track(looks, "look", len(store), "images"), strict=True)
    return list(scores), np.stack(hashes)


def _features(images: Artifact, folder: Path, encoder: GmailEncoder | None) -> Tensor | None:
    if encoder is None:
        return None
    return open_features(extract_images(images, encoder, Route.FROZEN, folder)).array


def _clip_scores(store: ImageStore, features: Tensor, encoder: GmailEncoder) -> Iterator[float]:
    """Yield the CLIPScore of each image and its prompt, both by the frozen model."""
    rows = iter(features.split(_TEXTS))
    encoder.tell_cut(store.texts)
    for some in _chunks(store.texts, _TEXTS):
        with torch.no_grad():
            texts = encoder.embed_texts(some, Route.FROZEN).cpu().double().numpy()
        yield from clip_score(next(rows).double().numpy(), texts).tolist()


def _chunks(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _write_scores(draft: Draft, scores: Sequence[Score]) -> None:
    text, number, whole = pa.string(), pa.float64(), pa.int32()
    kinds = {
        **dict.fromkeys(("id", "duplicate_of", "copy_of", "copy_in", "reason"), text),
        **dict.fromkeys(("duplicate_bits", "copy_bits"), whole),
    }
    schema = pa.schema([(name, kinds.get(name, number)) for name in asdict(scores[0])])
    table = pa.Table.from_pylist([asdict(score) for score in scores], schema=schema)
    with atomic_file(draft.path(SCORES)) as file:
        pq.write_table(table, file, compression="zstd")


def _write_kept(draft: Draft, store: ImageStore, places: Sequence[Place]) -> Artifact:
    """Write the images that are kept, shard by shard."""

    def write(start: int, _: object) -> None:
        chunk = places[start : start + _SHARD]
        samples = (sample(place) for place in chunk if place.reason is None)
        left_out = [Quarantined(place.id, place.reason) for place in chunk if place.reason]
        write_shard(path(start), samples, left_out)

    def sample(place: Place) -> Sample:
        record = store.record(place.image_id)
        other = place.caption if place.caption != record.prompt else None
        return replace(record, id=place.id, caption=other), store.read_bytes(place.image_id)

    def path(start: int) -> Path:
        return draft.path(shard_name(start // _SHARD))

    if all(place.reason for place in places):
        raise DataError(
            f"no image would be left (the first: {places[0].reason}): lower the thresholds"
        )
    starts = range(0, len(places), _SHARD)
    run_shards(starts, Job(write, lambda start: read_shard(path(start)) is not None, label="write"))
    return finish_images(draft, limit_quarantine=1.0)
