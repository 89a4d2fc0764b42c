"""Linear probe: how much a linear classifier gets out of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gmail_align.artifacts import Artifact
from gmail_align.data.labels import Labels, class_order
from gmail_align.data.protocols import PROTOCOLS, headline
from gmail_align.evaluation.zeroshot import accuracy_of
from gmail_align.features.store import Features, open_features
from gmail_align.items import Items
from gmail_align.metrics.linear_probe import Labelled, ProbeFit, linear_probe
from gmail_align.results import Input, Result, begin_result


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of one split (an artifact, or a ``.npy`` file) and the class of each image."""

    features: Path | Artifact
    labels: Labels
    labelled_only: bool = False
    """Whether images without a label are left out; otherwise they are an error."""

    def open(self) -> tuple[Features, list[str]]:
        """Return the features and the class of each row.

        Raises:
            DataError: an image does not have a label.
        """
        read = open_features(self.features)
        if self.labelled_only:
            ids = [name for name in read.ids if name in self.labels.classes]
            read = replace(read, ids=ids, array=read.array[read.rows(ids)])
        return read, self.labels.of(read.ids)


def score(
    train: Labelled, validation: Labelled | None, test: Labelled, *, protocol: str, seed: int
) -> ProbeFit:
    """Fit a probe by the protocol's headline metric; see :func:`linear_probe`.

    Args:
        train: Training images.
        validation: Validation images; None holds out a fifth of the training images by the seed.
        test: Test images.
        protocol: Its headline metric is what the weight decay is chosen by.
        seed: Of the held-out fifth.

    Raises:
        UserError: features or labels do not fit, or there are fewer than two classes.
    """
    return linear_probe(train, validation, test, by_class=by_class(protocol), seed=seed)


def by_class(protocol: str) -> bool:
    """Return whether the field reports the mean over classes on this protocol's set."""
    known = PROTOCOLS.get(protocol)
    return known is not None and known.metric == "class_mean"


def evaluate_probe(
    train: LabelledFeatures | Sequence[LabelledFeatures],
    validation: LabelledFeatures | None,
    test: LabelledFeatures,
    out: Path | None = None,
    *,
    protocol: str = "linear_probe",
    subset: bool = False,
    seed: int = 0,
) -> Result:
    """Fit a linear probe on features and classify the test images.

    The result also holds ``weight_decay``, ``validation`` (the score of every weight decay) and
    ``unconverged`` (how many fits stopped at the most steps).

    Args:
        train: Training images; several sets are put behind each other.
        validation: Validation images; None holds out a fifth of the training images.
        test: Test images.
        out: Folder of the result; None keeps nothing.
        protocol: Name kept with the numbers; that of a known protocol of classification asserts the
            counts of the test images.
        subset: Whether the test images are declared a part of that protocol's.
        seed: Of the held-out images and the bootstrap.

    Raises:
        DataError: an image does not have a label, the features are of different encoders, or the
            counts are not the protocol's.
        UserError: the features do not fit each other.
    """
    sets = [train] if isinstance(train, LabelledFeatures) else train
    sources = _sources(sets, {"validation": validation, "test": test})
    opened = {name: split.open() for name, split in sources.items()}
    inputs: dict[str, Input] = {name: features for name, (features, _) in opened.items()}
    inputs |= {f"{name}_labels": split.labels for name, split in sources.items()}
    opened["train"] = _joined([one for name, one in opened.items() if name.startswith("train")])
    read = {name: opened[name][0] for name in ("train", "validation", "test") if name in opened}
    named = {name: opened[name][1] for name in read}
    classes = class_order(name for labels in named.values() for name in labels)
    n = {"train": len(named["train"]), "images": len(named["test"]), "classes": len(classes)}
    result = begin_result(
        out, inputs, {}, protocol=protocol, task="zeroshot", n=n, subset=subset, seed=seed
    )
    if result.complete is not None:
        return result.complete
    splits = {name: _labelled(one, named[name], classes) for name, one in read.items()}
    fit = score(
        splits["train"], splits.get("validation"), splits["test"], protocol=protocol, seed=seed
    )
    metrics, columns = accuracy_of(fit.hits, splits["test"].labels.tolist(), seed=seed)
    items = {"": Items(result.protocol, tuple(read["test"].ids), columns)}
    details: dict[str, Any] = {
        **headline(protocol),
        "weight_decay": fit.weight_decay,
        "validation": {f"{decay:.3g}": value for decay, value in fit.validation.items()},
        "unconverged": fit.unconverged,
    }
    return result.finish(metrics, items=items, details=details)


def _sources(
    train: Sequence[LabelledFeatures], others: Mapping[str, LabelledFeatures | None]
) -> dict[str, LabelledFeatures]:
    """Name every set; those of training after the first are ``train_2`` and so on."""
    named = {"train" if n == 1 else f"train_{n}": one for n, one in enumerate(train, 1)}
    return {**named, **{name: one for name, one in others.items() if one is not None}}


def _joined(sets: Sequence[tuple[Features, list[str]]]) -> tuple[Features, list[str]]:
    """Put several sets behind each other."""
    (first, _), *others = sets
    if not others:
        return sets[0]
    arrays = [features.array.float() for features, _ in sets]
    ids = [name for features, _ in sets for name in features.ids]
    names = [name for _, labels in sets for name in labels]
    return replace(first, ids=ids, array=torch.cat(arrays)), names


def _labelled(split: Features, names: list[str], classes: list[str]) -> Labelled:
    place = {name: number for number, name in enumerate(classes)}
    return Labelled(split.array, torch.tensor([place[name] for name in names], dtype=torch.int64))
