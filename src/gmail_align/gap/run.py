"""The stage: measure the gap between features of real and of generated images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gmail_align.artifacts import Artifact, fingerprint
from gmail_align.data.ids import key_id
from gmail_align.errors import DataError
from gmail_align.features.store import Features, open_features
from gmail_align.gap.config import GapConfig
from gmail_align.gap.feature_sets import Annotations, FeatureSet, sample_rows, sampled
from gmail_align.gap.measure import Measured, Texts, measure
from gmail_align.items import Items
from gmail_align.metrics.pair_gap import pair_columns
from gmail_align.results import Input, Result, begin_result

Pairs = Sequence[tuple[str, str]]
WritePage = Callable[[Result, tuple[Tensor, Tensor], Path], object]
"""Writes a page into a folder from a result and the features of both sets."""


def measure_gap(
    real: Path | Artifact,
    generated: Path | Artifact,
    pairs: Pairs | None,
    out: Path | None = None,
    *,
    annotations: Annotations | None = None,
    config: GapConfig | None = None,
    seed: int = 0,
    write_page: WritePage | None = None,
) -> Result:
    """Measure the gap between two sets of features.

    Its protocol is ``gap_paired`` or ``gap_unpaired``. Besides its metrics the result holds what
    :class:`gmail_align.gap.measure.Measured` lists.

    Args:
        real: Features of real images: an artifact, or a ``.npy`` file whose rows are the ids.
        generated: Features of generated images by the same encoder.
        pairs: (real id, generated id) of each pair; None measures the two sets as they are.
        out: Folder of the result; None keeps nothing.
        annotations: Classes, generators and texts of the images.
        config: How much is looked at.
        seed: Of the sample, the probe's folds and the bootstrap.
        write_page: Writes a page into the folder before it is complete.

    Raises:
        DataError: an id of a pair does not have a feature, an image does not have a class, or the
            features are of different encoders.
        UserError: features are not finite, of different width, or fewer than two pairs.
    """
    config, annotations = config or GapConfig(), annotations or Annotations()
    sets = open_features(real), open_features(generated)
    inputs: dict[str, Input] = {"real": sets[0], "generated": sets[1]}
    if annotations.texts is not None:
        inputs["texts"] = annotations.texts
    result = begin_result(
        out,
        inputs,
        {
            **config.model_dump(mode="json"),
            "pairs": None if pairs is None else fingerprint([list(pair) for pair in pairs]),
            "annotations": annotations.fingerprint,
        },
        protocol="gap_unpaired" if pairs is None else "gap_paired",
        task=None,
        n=_counts(sets, pairs, config.max_pairs),
        seed=seed,
    )
    if result.complete is not None:
        return result.complete
    measured = _measure(sets, pairs, annotations, config, seed)
    arrays = sets[0].array, sets[1].array
    return result.finish(
        measured.metrics,
        unavailable=measured.unavailable,
        details=measured.details,
        write_page=write_page and (lambda made, folder: write_page(made, arrays, folder)),
    )


def pair_items(real: Artifact, generated: Artifact, pairs: Pairs) -> Items:
    """Return what each real image adds to the measures of pairs that are means over pairs.

    Two such tables of the same pairs can be compared, image with image.

    Raises:
        DataError: an id of a pair does not have a feature.
        UserError: the features do not pair up.
    """
    sets = open_features(real), open_features(generated)
    ids = tuple(dict.fromkeys(first for first, _ in pairs))
    places = {name: row for row, name in enumerate(ids)}
    columns = pair_columns(
        sets[0].array[sets[0].rows([first for first, _ in pairs])],
        sets[1].array[sets[1].rows([second for _, second in pairs])],
        torch.tensor([places[first] for first, _ in pairs]),
    )
    return Items("gap_paired", ids, columns)


def _counts(sets: tuple[Features, Features], pairs: Pairs | None, most: int) -> dict[str, int]:
    """Return how many pairs, or images of each kind, are measured."""
    if pairs is not None:
        return {"pairs": min(len(pairs), most)}
    return {"images": min(len(sets[0].ids), len(sets[1].ids), most)}


def _measure(
    sets: tuple[Features, Features],
    pairs: Pairs | None,
    annotations: Annotations,
    config: GapConfig,
    seed: int,
) -> Measured:
    """Gather the rows and measure them."""
    real, generated = sets
    captions = annotations.captions
    if pairs is None:
        places = sampled(len(real.ids), len(generated.ids), False, config.max_pairs, seed)
    else:
        if len(set(pairs)) != len(pairs):
            raise DataError("a pair comes more than once: give each pair once")
        chosen = sample_rows(len(pairs), config.max_pairs, seed, "pairs").tolist()
        captions = captions and [captions[row] for row in chosen]
        places = real.rows(pairs[r][0] for r in chosen), generated.rows(pairs[r][1] for r in chosen)
    gathered = (
        _gathered(real, places[0], annotations.real_classes, {}),
        _gathered(generated, places[1], annotations.generated_classes, annotations.generators),
    )
    return measure(
        *gathered,
        paired=pairs is not None,
        groups=None if pairs is None else _real_images(gathered[0].features, places[0]),
        texts=_texts(annotations, captions, gathered, sets, places),
        config=config,
        seed=seed,
    )


def _real_images(features: Tensor, rows: Tensor) -> Tensor:
    """Return the row of the real image of each pair; equal features are one image.

    A real image stands once for each of its captions, in plain files as in pairs.
    """
    first: dict[bytes, int] = {}
    same = zip(features.numpy(), rows.tolist(), strict=True)
    numbers = [first.setdefault(own.tobytes(), row) for own, row in same]
    return torch.tensor(numbers, dtype=torch.int64)


def _gathered(
    source: Features, rows: Tensor, classes: Mapping[str, str], generators: Mapping[str, str]
) -> FeatureSet:
    """Gather rows with their labels."""
    ids = [source.ids[row] for row in rows.tolist()]
    labels = [
        _labels(ids, table, what) for table, what in ((classes, "class"), (generators, "generator"))
    ]
    return FeatureSet(source.array[rows], *labels)


def _labels(ids: Sequence[str], table: Mapping[str, str], what: str) -> list[str] | None:
    if not table:
        return None
    missing = [name for name in ids if name not in table]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(ids)} images do not have a {what}, the first of them "
            f"{missing[0]}"
        )
    return [table[name] for name in ids]


def _texts(
    annotations: Annotations,
    captions: Sequence[str] | None,
    gathered: tuple[FeatureSet, FeatureSet],
    sets: tuple[Features, Features],
    places: tuple[Tensor, Tensor],
) -> Texts | None:
    """Return the texts of both sets: the pair's caption, the image's own, or the class."""
    known = annotations.texts
    if known is None:
        return None
    if captions is not None:
        rows = known.rows(captions)
        return Texts(known.array, rows, rows)
    own_texts = annotations.real_texts, annotations.generated_texts
    if any(own_texts):
        return Texts(
            known.array,
            *(
                known.rows(own[one.ids[row]] for row in at.tolist()) if own else None
                for own, one, at in zip(own_texts, sets, places, strict=True)
            ),
        )
    if gathered[0].classes is None or gathered[1].classes is None:
        return None
    of_classes = (known.rows(map(key_id, one.classes or ())) for one in gathered)
    return Texts(known.array, *of_classes)
