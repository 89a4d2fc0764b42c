"""The gap, the evaluations by one function for each protocol, and the comparison of results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gmail_align.api.places import ModelPlace, Place, artifact_of, folder_of, open_encoder, place_of

if TYPE_CHECKING:
    from gmail_align.data.labels import Labels
    from gmail_align.results import Result


def measure_gap(
    real: Place,
    generated: Place,
    out: str | os.PathLike[str] | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    seed: int = 0,
    atlas: str | os.PathLike[str] | None = None,
    images: tuple[Place, Place] | None = None,
) -> Result:
    """Measure how far the features of generated images are from those of real ones.

    Args:
        real: Features of real images: an artifact, or a ``.npy`` file of shape (n, d).
        generated: Features of generated images by the same encoder.
        out: Folder of the result; nothing is kept when None.
        pairs: Id of a real image and id of its generated one, for what only pairs can tell.
        seed: Seed of the bootstrap.
        atlas: Also writes a row an image with its place on a map, ``FILE.parquet``.
        images: The real and the generated images, for the pictures of ``atlas``.

    Example:
        >>> gap = measure_gap("features/real", "features/raw", atlas="gap.parquet")
        >>> 0 <= gap.metrics["probe_auc"].value <= 1
        True
    """
    from gmail_align.data.images import ImageStore
    from gmail_align.features.store import open_features
    from gmail_align.gap.config import GapConfig, require_parquet
    from gmail_align.gap.run import measure_gap as run
    from gmail_align.report.atlas import write_atlas
    from gmail_align.report.gap_pictures import GapSide

    config, places = GapConfig(), (place_of(real), place_of(generated))
    if atlas is not None:
        require_parquet(Path(atlas))
    result = run(*places, pairs, folder_of(out), config=config, seed=seed)
    if atlas is not None:
        stores = [images and ImageStore(artifact_of(images[side], "images")) for side in (0, 1)]
        first, second = (
            GapSide(open_features(place), store)
            for place, store in zip(places, stores, strict=True)
        )
        write_atlas(Path(atlas), (first, second), pairs, most=config.max_pairs, seed=seed)
    return result


def evaluate_captions(
    predictions: Mapping[str, Place],
    references: Place,
    out: str | os.PathLike[str] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    protocol: str = "captions",
    seed: int = 0,
) -> Result:
    """Score captions against human ones: BLEU, METEOR, ROUGE-L, CIDEr, ...

    Args:
        predictions: Name -> predictions: an artifact, or a JSON file.
        references: Captions: an artifact, or COCO's annotations.
        out: Folder of the result; nothing is kept when None.
        metrics: Only these; all that can be computed when None.
        protocol: Name kept with the numbers. A known protocol's counts are checked.
        seed: Seed of the bootstrap.

    Example:
        >>> told = evaluate_captions(
        ...     {"mine": "captions"}, "real/captions", "scores/captions", metrics=["CIDEr"]
        ... )
        >>> told.n["images"]
        24
    """
    from gmail_align.evaluation.captions import CaptionOptions
    from gmail_align.evaluation.captions import evaluate_captions as run

    options = CaptionOptions(protocol, metrics=metrics, seed=seed)
    systems = {name: place_of(place) for name, place in predictions.items()}
    return run(systems, place_of(references), folder_of(out), options)


def evaluate_retrieval(
    images: Place,
    texts: Place,
    captions: Place,
    out: str | os.PathLike[str] | None = None,
    *,
    protocol: str = "retrieval",
    seed: int = 0,
) -> Result:
    """Score retrieval of captions by images and of images by captions (R@1, R@5, R@10).

    Args:
        images: Image features.
        texts: Text features of the captions, by the same encoder and route.
        captions: The captions; with ``.npy`` features, the row of the image of each text.
        out: Folder of the result; nothing is kept when None.
        protocol: Name kept with the numbers. A known protocol's counts are checked.
        seed: Seed of the bootstrap.

    Example:
        >>> scores = evaluate_retrieval(
        ...     "features/real", "features/texts", "real/captions", "scores/frozen"
        ... )
        >>> scores.n
        {'images': 24, 'texts': 120}
    """
    from gmail_align.evaluation.retrieval import evaluate_retrieval as run

    places = (place_of(images), place_of(texts), place_of(captions))
    return run(*places, folder_of(out), protocol=protocol, seed=seed)


def evaluate_zeroshot(
    images: Place,
    labels: Mapping[str, str] | str | os.PathLike[str],
    prompts: Mapping[str, Sequence[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    encoder: ModelPlace = "tabletop",
    protocol: str = "zeroshot",
    seed: int = 0,
) -> Result:
    """Score zero-shot classification of labelled images.

    Args:
        images: Image features.
        labels: Image id -> class, or a file or folder that says it.
        prompts: Class -> its prompts, equally many each.
        out: Folder of the result; nothing is kept when None.
        encoder: The encoder that made the features; it embeds the prompts.
        protocol: Name kept with the numbers. A known protocol's counts are checked.
        seed: Seed of the bootstrap.

    Example:
        >>> ids = load("real/images").ids
        >>> labels = {name: ("ball", "cube")[row % 2] for row, name in enumerate(ids)}
        >>> prompts = {"ball": ["A ball."], "cube": ["A cube."]}
        >>> evaluate_zeroshot("features/real", labels, prompts).n["classes"]
        2
    """
    from gmail_align.evaluation.zeroshot import embed_classes
    from gmail_align.evaluation.zeroshot import evaluate_zeroshot as run

    classes = embed_classes(open_encoder(encoder), prompts, place_of(images))
    given, place = _labels(labels), folder_of(out)
    return run(place_of(images), given, classes, place, protocol=protocol, seed=seed)


def evaluate_probe(
    train: Place,
    test: Place,
    labels: Mapping[str, str] | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    validation: Place | None = None,
    protocol: str = "linear_probe",
    seed: int = 0,
) -> Result:
    """Fit a linear classifier on features of training images and score it on test images.

    Args:
        train: Features of training images; generated ones, for example.
        test: Features of test images.
        labels: Image id -> class for all of them, or a file or folder that says it.
        out: Folder of the result; nothing is kept when None.
        validation: Features that choose the weight decay; a fifth of ``train`` when None.
        protocol: Name kept with the numbers.
        seed: Seed of the held-out fifth and of the bootstrap.

    Example:
        >>> evaluate_probe("features/real", "features/real", labels).protocol
        'linear_probe'
    """
    from gmail_align.evaluation.probe import LabelledFeatures
    from gmail_align.evaluation.probe import evaluate_probe as run

    given = _labels(labels)
    held = None if validation is None else LabelledFeatures(place_of(validation), given)
    first, last = (LabelledFeatures(place_of(place), given) for place in (train, test))
    return run(first, held, last, folder_of(out), protocol=protocol, seed=seed)


def evaluate_answers(
    responses: Place,
    answers: Place,
    out: str | os.PathLike[str] | None = None,
    *,
    protocol: str = "answers",
    seed: int = 0,
) -> Result:
    """Score answers to multiple-choice questions: accuracy, and how many could not be read.

    Args:
        responses: Question id -> response: a JSON file, or predictions.
        answers: The right answers: a JSON file, or imported questions.
        out: Folder of the result; nothing is kept when None.
        protocol: ``scienceqa_img_test``, ``mmmu_val`` or a name of your own.
        seed: Seed of the bootstrap.

    Example:
        >>> import json, pathlib
        >>> _ = pathlib.Path("right.json").write_text(json.dumps({"q1": "B", "q2": "A"}))
        >>> _ = pathlib.Path("said.json").write_text(json.dumps({"q1": "B", "q2": "C"}))
        >>> evaluate_answers("said.json", "right.json").metrics["accuracy"].value
        0.5
    """
    from gmail_align.evaluation.answers import evaluate_answers as run

    return run(place_of(responses), place_of(answers), folder_of(out), protocol=protocol, seed=seed)


def compare(
    a: Place,
    b: Place,
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
) -> Result:
    """Estimate a - b in every metric that two results share, paired over images or questions.

    Args:
        a: Folder of a result.
        b: Folder of another one on the same items.
        out: Folder of the comparison; nothing is kept when None.
        seed: Seed of the bootstrap.

    Raises:
        DataError: the two are of different protocols or items.

    Example:
        >>> compare("scores/frozen", "scores/frozen").metrics["i2t_r1"].value
        0.0
    """
    from gmail_align.evaluation.compare import compare_items
    from gmail_align.items import read_items

    first, last = (read_items(artifact_of(one).folder) for one in (a, b))
    return compare_items(first, last, folder_of(out), seed=seed)


def _labels(labels: Mapping[str, str] | str | os.PathLike[str]) -> Labels:
    from gmail_align.data.labels import Labels, open_labels

    return Labels(dict(labels)) if isinstance(labels, Mapping) else open_labels(Path(labels))
