"""Linear probe of features, of plain files or of artifacts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, fingerprint, write_json
from gmail_align.data.protocols import PROTOCOLS
from gmail_align.errors import DataError
from gmail_align.evaluation.items import ITEMS, Items, write_items
from gmail_align.evaluation.protocol import headline, named
from gmail_align.evaluation.result import RESULT, answer, plain
from gmail_align.features.arrays import load_features, load_integers
from gmail_align.features.store import Features, read_features
from gmail_align.metrics.linear_probe import Labelled, Probed, linear_probe
from gmail_align.metrics.zeroshot import accuracy_columns, accuracy_estimates

Split = tuple[Path, Path]


@dataclass(frozen=True)
class ProbeOptions:
    """How a probe is named and drawn.

    Attributes:
        protocol: Name kept with the numbers; that of a known protocol of classification asserts
            its counts, and its headline metric is what the weight decay is chosen by.
        subset: The test images are declared a part of that protocol's.
        seed: Of the held-out images and the bootstrap.
    """

    protocol: str = "linear_probe"
    subset: bool = False
    seed: int = 0

    @property
    def by_class(self) -> bool:
        """Whether the field reports the mean over classes on this set."""
        known = PROTOCOLS.get(self.protocol)
        return known is not None and known.metric == "class_mean"

    def name(self, labels: torch.Tensor, classes: int) -> str:
        """Return the name that the result carries."""
        n = {"images": len(labels), "classes": classes}
        return named(self.protocol, "zeroshot", n, subset=self.subset)


def probe_of_files(
    train: Split,
    validation: Split | None,
    test: Split,
    options: ProbeOptions | None = None,
    *,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Fit a linear probe on ``.npy`` files; each split is (features, labels).

    Args:
        train: Floats (n, d) and integers (n,).
        validation: The same; None holds out a fifth of the training images.
        test: The same.
        options: Its name and seed.
        keep: Folder to keep in what each test image adds, so that results can be compared.

    Returns:
        What :func:`gmail_align.evaluation.result.answer` lays out, with ``weight_decay`` and
        ``validation`` (the score of every weight decay).

    Raises:
        UserError: a file cannot be read, or the splits do not fit.
        MissingExtraError: scikit-learn is not installed.
    """
    start, options = time.monotonic(), options or ProbeOptions()
    read = [None if split is None else _read(*split) for split in (train, validation, test)]
    first, second, third = splits = _numbered(read)
    assert first is not None and third is not None
    classes = int(max(one.labels.max() for one in splits if one is not None)) + 1
    name = options.name(third.labels, classes)
    found = linear_probe(first, second, third, by_class=options.by_class, seed=options.seed)
    labels = third.labels.numpy()
    if keep is not None:
        rows = tuple(map(str, range(len(labels))))
        write_items(keep / ITEMS, Items(name, rows, accuracy_columns(found.hits, labels)))
    n = {"train": len(first.labels), "images": len(labels), "classes": classes}
    metrics = accuracy_estimates(found.hits, labels, seed=options.seed)
    return answer(metrics, name, n, start) | headline(options.protocol) | _chosen(found)


def evaluate_probe(
    train: Artifact,
    validation: Artifact | None,
    test: Artifact,
    labels: Mapping[str, int],
    out: Path,
    options: ProbeOptions | None = None,
) -> Artifact:
    """Fit a linear probe on features; returns an artifact of kind ``result``.

    Args:
        train: Features of training images.
        validation: Features of validation images; None holds out a fifth of the training images.
        test: Features of test images.
        labels: Image id -> class, of every image of the three.
        out: Folder of the result.
        options: Its name and seed.

    Raises:
        DataError: an image has no label.
        UserError: the features do not fit each other, or the counts are not the protocol's.
        MissingExtraError: scikit-learn is not installed.
    """
    options = options or ProbeOptions()
    inputs = {"train": train, "test": test}
    inputs |= {} if validation is None else {"validation": validation}
    config = {"protocol": options.protocol, "labels": fingerprint(dict(labels))}
    draft = begin(out, "result", config, inputs, options.seed)
    if draft.complete is not None:
        return draft.complete
    read = {name: read_features(artifact) for name, artifact in inputs.items()}
    splits = {name: _labelled(split, labels) for name, split in read.items()}
    classes = max(labels.values()) + 1
    name = options.name(splits["test"].labels, classes)
    found = linear_probe(
        splits["train"],
        splits.get("validation"),
        splits["test"],
        by_class=options.by_class,
        seed=options.seed,
    )
    wanted = splits["test"].labels.numpy()
    columns = accuracy_columns(found.hits, wanted)
    write_items(draft.path(ITEMS), Items(name, tuple(read["test"].ids), columns))
    n = {"train": len(splits["train"].labels), "images": len(wanted), "classes": classes}
    body = {
        "protocol": name,
        **headline(options.protocol),
        "metrics": plain(accuracy_estimates(found.hits, wanted, seed=options.seed)),
        "n": n,
        **_chosen(found),
        "seed": options.seed,
        "unavailable": {},
        "fingerprints": {key: artifact.fingerprint for key, artifact in inputs.items()},
    }
    write_json(draft.path(RESULT), body)
    return draft.finish(n)


def _read(features: Path, labels: Path) -> Labelled:
    return Labelled(load_features(features), load_integers(labels))


def _numbered(splits: Sequence[Labelled | None]) -> list[Labelled | None]:
    """Count the labels of all splits 0, 1, ...; a negative one stays, and is refused."""
    labels = [one.labels for one in splits if one is not None]
    names = torch.cat(labels).unique()
    if len(names) and (names[0] < 0 or any(one.ndim != 1 for one in labels)):
        return list(splits)
    return [
        None if one is None else Labelled(one.features, torch.searchsorted(names, one.labels))
        for one in splits
    ]


def _labelled(split: Features, labels: Mapping[str, int]) -> Labelled:
    return Labelled(split.array, labels_of(split.ids, labels))


def labels_of(ids: Sequence[str], labels: Mapping[str, int]) -> Int[Tensor, " n"]:
    """Return the class of every image.

    Raises:
        DataError: an image has none.
    """
    missing = [name for name in ids if name not in labels]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(ids)} images have no label, the first of them "
            f"{missing[0]}: name the class of every image"
        )
    return torch.tensor([labels[name] for name in ids], dtype=torch.int64)


def _chosen(found: Probed) -> dict[str, Any]:
    return {
        "weight_decay": found.weight_decay,
        "validation": {f"{decay:.3g}": score for decay, score in found.validation.items()},
        "unconverged": found.unconverged,
    }
