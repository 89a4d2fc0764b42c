"""A linear probe on several sets of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gmail_align.data.labels import Labels
from gmail_align.errors import DataError
from gmail_align.evaluation.probe import LabelledFeatures, evaluate_probe

pytest.importorskip("sklearn")
CLASSES = ("cat", "dog")


def rows(folder: Path, name: str, count: int, seed: int) -> LabelledFeatures:
    """Write features of two noisy classes, with a label a row."""
    rng = np.random.default_rng(seed)
    which = np.arange(count) % 2
    array = rng.normal(size=(count, 8)) + 0.8 * which[:, None]
    np.save(folder / f"{name}.npy", array.astype(np.float32))
    labels = {str(row): CLASSES[k] for row, k in enumerate(which)}
    return LabelledFeatures(folder / f"{name}.npy", Labels(labels, by_row=True))


def test_several_sets_are_one_set(tmp_path: Path) -> None:
    first, second = (rows(tmp_path, str(n), 40, n) for n in (1, 2))
    test = rows(tmp_path, "test", 60, 3)
    arrays = [np.load(tmp_path / f"{n}.npy") for n in (1, 2)]
    np.save(tmp_path / "both.npy", np.concatenate(arrays))
    labels = {str(row): CLASSES[row % 2] for row in range(80)}
    both = LabelledFeatures(tmp_path / "both.npy", Labels(labels, by_row=True))
    apart = evaluate_probe([first, second], None, test)
    joined = evaluate_probe(both, None, test)
    assert apart.metrics == joined.metrics
    assert apart.n["train"] == joined.n["train"] == 80


def test_images_without_a_label_are_left_out_only_where_that_is_asked(tmp_path: Path) -> None:
    whole, test = rows(tmp_path, "train", 40, 1), rows(tmp_path, "test", 60, 3)
    np.save(tmp_path / "half.npy", np.load(tmp_path / "train.npy")[:20])
    half = LabelledFeatures(
        tmp_path / "half.npy", Labels({str(row): CLASSES[row % 2] for row in range(20)})
    )
    few = Labels({name: k for name, k in whole.labels.classes.items() if int(name) < 20})
    with pytest.raises(DataError, match="20 of 40 images"):
        evaluate_probe(LabelledFeatures(whole.features, few), None, test)
    part = evaluate_probe(LabelledFeatures(whole.features, few, labelled_only=True), None, test)
    assert part.n["train"] == 20
    assert part.metrics == evaluate_probe(half, None, test).metrics
