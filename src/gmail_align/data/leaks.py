"""The leak guard: training images that an evaluation also has, found by id and by looks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from gmail_align.artifacts import Artifact, begin, write_jsonl
from gmail_align.data.captions import iter_captions, write_captions
from gmail_align.data.hashes import NEAR, HashArray, hash_images, near_pairs
from gmail_align.data.images import ImageStore, finish_images, shard_name, write_shard
from gmail_align.data.mapped import blocks
from gmail_align.data.names import Names
from gmail_align.data.pairs import PAIRS, iter_pairs
from gmail_align.data.unique import UniqueIds
from gmail_align.errors import ArtifactError, DataError

_COCO_NAME: Final = re.compile(
    r"(?:^|[-_])(?:train|val|test)20(?:14|17)[-_]+(?:COCO_\w+_)?0*(\d+)$"
)
_SHARD: Final = 1000


@dataclass(frozen=True)
class Leak:
    """One training image that an evaluation also has.

    ``how`` is ``id`` or ``looks``; ``distance`` are the bits in which their perceptual hashes
    differ, None where both were not hashed.
    """

    image_id: str
    evaluation: str
    evaluation_id: str
    how: str
    distance: int | None = None


@dataclass(frozen=True)
class Leaks:
    """The leaks, and how many images were compared."""

    leaks: list[Leak]
    train: int
    evaluation: int
    hashed: bool
    not_compared: tuple[str, ...] = ()
    """Evaluations of which nothing can be told: neither ids nor looks could be compared."""

    @property
    def ids(self) -> set[str]:
        """The training images that leak."""
        return {leak.image_id for leak in self.leaks}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "leaking": len(self.ids),
            "by_id": len({leak.image_id for leak in self.leaks if leak.how == "id"}),
            "by_looks": len({leak.image_id for leak in self.leaks if leak.how == "looks"}),
            "train_images": self.train,
            "evaluation_images": self.evaluation,
            "hashed": self.hashed,
            "not_compared": list(self.not_compared),
            "found": [asdict(leak) for leak in self.leaks],
        }


def photo_key(image_id: str, config: Mapping[str, Any]) -> str | None:
    """Return what names a photo in every data set that has it, None where an id means nothing.

    COCO's number is the same in 2014, 2017, Karpathy's splits and ShareGPT4V's paths; Flickr's is
    the first part of the file names of Flickr8k and Flickr30k.

    Args:
        image_id: Id of an image.
        config: Configuration of its artifact, which names format and data set.
    """
    form, dataset = config.get("format"), config.get("dataset", "")
    if form == "coco" or (form == "karpathy" and dataset == "coco"):
        return f"coco:{image_id.lstrip('0') or '0'}"
    if form == "flickr30k" or (form == "karpathy" and dataset.startswith("flickr")):
        return f"flickr:{image_id.partition('_')[0]}"
    if match := _COCO_NAME.search(image_id):
        return f"coco:{match[1]}"
    return None


def find_leaks(
    train: Artifact, evaluations: Sequence[Artifact], *, distance: int = NEAR, hashed: bool = True
) -> Leaks:
    """Compare training images with those of evaluations.

    Ids are compared where they mean the same photo (see :func:`photo_key`), looks where both sides
    are images. Pairs have no configuration of a data set: their ids are not compared, so check the
    images that they were made of.

    Args:
        train: Images, captions or pairs that are trained on.
        evaluations: Images or captions that are evaluated on.
        distance: Most bits of 128 in which the hashes of two copies differ.
        hashed: Whether looks are compared too.

    Raises:
        ArtifactError: an artifact holds something that has no image ids.
    """
    own = _ids(train)
    keys = Names(photo_key(image_id, train.manifest["config"]) or "" for image_id in own)
    named = any(keys)
    both = hashed and train.kind == "images"
    hashes = hash_images(ImageStore(train), "hash train") if both else None
    leaks: dict[tuple[str, str], Leak] = {}
    total, compared, unknown = 0, False, list[str]()
    for evaluation in evaluations:
        theirs = _ids(evaluation)
        total += len(theirs)
        looks = hashes is not None and evaluation.kind == "images"
        photos = any(photo_key(name, evaluation.manifest["config"]) for name in theirs)
        if theirs and own and not (looks or (named and photos)):
            unknown.append(str(evaluation.folder))
        for leak in _by_id(own, keys, theirs, evaluation) if named else ():
            leaks.setdefault((leak.image_id, leak.evaluation), leak)
        if hashes is not None and evaluation.kind == "images":
            compared = True
            for leak in _by_looks(own, hashes, theirs, evaluation, distance):
                leaks.setdefault((leak.image_id, leak.evaluation), leak)
    rows = sorted(leaks.values(), key=lambda leak: (own.row(leak.image_id), leak.evaluation))
    return Leaks(rows, len(own), total, compared, tuple(unknown))


def refuse_leaks(leaks: Leaks, train: Artifact) -> None:
    """Stop when training images are in an evaluation.

    Raises:
        DataError: how many, which the first is, and what to do.
    """
    if leaks.leaks:
        first, counts = leaks.leaks[0], leaks.to_dict()
        raise DataError(
            f"{counts['leaking']} of {leaks.train} training images in {train.folder} are evaluated "
            f"on too ({counts['by_id']} by id, {counts['by_looks']} by looks; the first is "
            f"{first.image_id}, which is {first.evaluation_id} in {first.evaluation}): drop them "
            "with gmail-align leaks --drop, or take another set"
        )


def drop_leaks(train: Artifact, leaks: Leaks, out: Path) -> Artifact:
    """Write the training images, captions or pairs again without those that leak.

    Raises:
        ArtifactError: the output folder belongs to other inputs.
        DataError: nothing would be left.
    """
    gone = leaks.ids
    draft = begin(
        out, train.kind, {**train.manifest["config"], "dropped": sorted(gone)}, {"train": train}
    )
    if draft.complete:
        return draft.complete
    if train.kind == "captions":
        kept = (row for row in iter_captions(train) if row.image_id not in gone)
        return draft.finish({"captions": write_captions(draft, kept)})
    if train.kind == "pairs":
        rows = (vars(row) for row in iter_pairs(train) if row.real_image_id not in gone)
        return draft.finish({"pairs": write_jsonl(draft.path(PAIRS), rows)})
    store = ImageStore(train)
    ids = (image_id for image_id in store.ids if image_id not in gone)
    for index, chunk in enumerate(blocks(ids, _SHARD)):
        samples = ((store.record(name), store.read_bytes(name)) for name in chunk)
        write_shard(draft.path(shard_name(index)), samples)
    return finish_images(draft)


def _ids(artifact: Artifact) -> Names:
    """Return the ids of the photos that an artifact holds, each once."""
    if artifact.kind == "images":
        return ImageStore(artifact).ids
    if artifact.kind == "captions":
        ids = (row.image_id for row in iter_captions(artifact))
    elif artifact.kind == "pairs":
        ids = (row.real_image_id for row in iter_pairs(artifact))
    else:
        raise ArtifactError(
            f"{artifact.folder} holds {artifact.kind}: images, captions or pairs are needed here"
        )
    return Names(filter(UniqueIds().add, ids))


def _by_id(own: Names, keys: Names, theirs: Names, evaluation: Artifact) -> Iterator[Leak]:
    config, folder = evaluation.manifest["config"], str(evaluation.folder)
    for block in blocks(theirs):
        named = [(image_id, key) for image_id in block if (key := photo_key(image_id, config))]
        owners, rows = keys.every_rows([key for _, key in named])
        for owner, name in zip(owners.tolist(), own.take(rows), strict=True):
            yield Leak(name, folder, named[owner][0], "id")


def _by_looks(
    own: Names,
    hashes: HashArray,
    theirs: Names,
    evaluation: Artifact,
    distance: int,
) -> Iterator[Leak]:
    other = hash_images(ImageStore(evaluation), f"hash {evaluation.folder.name}")
    for row, column, differing in near_pairs(hashes, other, distance):
        yield Leak(own[row], str(evaluation.folder), theirs[column], "looks", differing)
