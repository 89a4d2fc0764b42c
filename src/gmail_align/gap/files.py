"""The gap between two ``.npy`` files of features."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmail_align.errors import DataError
from gmail_align.gap.config import GapConfig
from gmail_align.gap.measure import paired_gap, unpaired_gap
from gmail_align.metrics.ranks import require_features, require_pairs


def gap_of_files(
    real: Path,
    generated: Path,
    *,
    paired: bool = False,
    config: GapConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the gap between features saved by numpy.

    Args:
        real: ``.npy`` of shape (n, d).
        generated: ``.npy`` of shape (m, d); m is n where ``paired``.
        paired: Row i of both files belongs to one caption.
        config: How much is looked at.
        seed: Of the sample, the probe's folds and the bootstrap.

    Returns:
        ``metrics`` (name -> value), ``intervals`` (name -> [low, high]), ``n``, ``protocol``,
        ``unavailable``, ``advice`` and ``seconds``.

    Raises:
        UserError: a file is missing, is no array of floats, holds NaN, or the two do not fit.
    """
    start = time.monotonic()
    first, second = _load(real), _load(generated)
    if paired:
        require_pairs(first, second)
    else:
        require_features(real=first, generated=second)
    measure = paired_gap if paired else unpaired_gap
    found = measure(first, second, config=config, seed=seed)
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


def _load(path: Path) -> Tensor:
    """Read a matrix of floats; never unpickles."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a .npy array: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(f"{path} does not hold a float array of shape (images, dim)")
    bad = int((~np.isfinite(array)).any(axis=1).sum())
    if bad:
        raise DataError(f"{bad} of {len(array)} rows of {path} hold NaN or infinity: extract again")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
