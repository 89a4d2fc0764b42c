"""The gap between two ``.npy`` files of features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmail_align.errors import DataError
from gmail_align.features.arrays import load_features
from gmail_align.gap.config import GapConfig
from gmail_align.gap.measure import Texts, measure_sides
from gmail_align.gap.sides import Side
from gmail_align.metrics.ranks import require_features, require_pairs


@dataclass(frozen=True)
class Beside:
    """Files beside the features; row by row.

    Attributes:
        real_classes: text file, the class of each real row on a line of its own.
        generated_classes: the same of generated rows.
        generators: text file, what made each generated row.
        texts: ``.npy``; of pairs one caption a row, else one class a row, classes by name.
    """

    real_classes: Path | None = None
    generated_classes: Path | None = None
    generators: Path | None = None
    texts: Path | None = None


def gap_of_files(
    real: Path,
    generated: Path,
    *,
    paired: bool = False,
    beside: Beside | None = None,
    config: GapConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the gap between features saved by numpy.

    Args:
        real: ``.npy`` of shape (n, d).
        generated: ``.npy`` of shape (m, d); m is n where ``paired``.
        paired: Row i of both files belongs to one caption.
        beside: Classes, generators and texts.
        config: How much is looked at.
        seed: Of the sample, the probe's folds and the bootstrap.

    Returns:
        ``metrics`` (name -> value), ``intervals`` (name -> [low, high]), ``n``, ``protocol``,
        ``floor``, ``groups``, ``unavailable``, ``advice`` and ``seconds``.

    Raises:
        UserError: a file is missing, is no array of floats, holds NaN, or they do not fit.
    """
    start = time.monotonic()
    beside = beside or Beside()
    first, second = load_features(real), load_features(generated)
    check = require_pairs if paired else require_features
    check(real=first, generated=second)
    sides = (
        Side(first, _lines(beside.real_classes)),
        Side(second, _lines(beside.generated_classes), _lines(beside.generators)),
    )
    texts = None if beside.texts is None else _texts(beside.texts, sides, paired)
    found = measure_sides(*sides, paired=paired, texts=texts, config=config, seed=seed)
    metrics = found.pop("metrics")
    return {
        "metrics": {name: entry["value"] for name, entry in metrics.items()},
        "intervals": {
            name: [entry["low"], entry["high"]]
            for name, entry in metrics.items()
            if entry["low"] is not None
        },
        "protocol": "gap_paired" if paired else "gap_unpaired",
        **found,
        "seconds": round(time.monotonic() - start, 3),
    }


def _lines(path: Path | None) -> Sequence[str] | None:
    """Read one label a line.

    Raises:
        DataError: the file cannot be read, or a line is empty.
    """
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise DataError(f"line {empty[0]} of {path} is empty: every row needs a name")
    return [line.strip() for line in lines]


def _texts(path: Path, sides: tuple[Side, Side], paired: bool) -> Texts:
    """Read text features, one a pair or one a class.

    Raises:
        DataError: there are more or fewer texts than pairs or classes, or neither is given.
    """
    array = load_features(path)
    if paired:
        return Texts(_many(array, len(sides[0]), path, "pairs"), *_rows(len(array)))
    if sides[0].classes is None or sides[1].classes is None:
        raise DataError(f"{path} needs pairs or classes to say whose text each row is")
    names = sorted({*sides[0].classes, *sides[1].classes})
    place = {name: row for row, name in enumerate(names)}
    rows = (torch.tensor([place[name] for name in side.classes or ()]) for side in sides)
    return Texts(_many(array, len(names), path, "classes"), *rows)


def _rows(count: int) -> tuple[Tensor, Tensor]:
    return torch.arange(count), torch.arange(count)


def _many(array: Tensor, wanted: int, path: Path, what: str) -> Tensor:
    if len(array) != wanted:
        raise DataError(f"{path} holds {len(array)} texts for {wanted} {what}: one each is needed")
    return array
