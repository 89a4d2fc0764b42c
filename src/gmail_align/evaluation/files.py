"""Retrieval and classification on plain files: ``.npy`` arrays in, one result out.

Every function returns what :func:`gmail_align.evaluation.result.answer` lays out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmail_align.errors import DataError
from gmail_align.evaluation.result import answer
from gmail_align.metrics.retrieval import require_retrieval, retrieval_metrics
from gmail_align.metrics.zeroshot import class_weights, zeroshot_metrics


def retrieval_of_files(
    image_features: Path,
    text_features: Path,
    text_image: Path,
    *,
    protocol: str = "retrieval",
    seed: int = 0,
) -> dict[str, Any]:
    """Score retrieval both ways.

    Args:
        image_features: Floats (n, d).
        text_features: Floats (m, d).
        text_image: Integers (m,): the row of each text's image.
        protocol: Name kept with the numbers.
        seed: Of the bootstrap.

    Raises:
        UserError: a file cannot be read, or the three do not fit.
    """
    start = time.monotonic()
    images, texts = load_features(image_features), load_features(text_features)
    owner = load_integers(text_image)
    require_retrieval(images, texts, owner)
    found = retrieval_metrics(images, texts, owner, seed=seed)
    return answer(found, protocol, {"images": len(images), "texts": len(texts)}, start)


def zeroshot_of_files(
    image_features: Path,
    labels: Path,
    class_features: Path,
    *,
    protocol: str = "zeroshot",
    seed: int = 0,
) -> dict[str, Any]:
    """Score zero-shot classification.

    Args:
        image_features: Floats (n, d).
        labels: Integers (n,): the row of each image's class.
        class_features: Floats (classes, d), or (classes, prompts, d) to be averaged.
        protocol: Name kept with the numbers.
        seed: Of the bootstrap.

    Raises:
        UserError: a file cannot be read, or the three do not fit.
    """
    start = time.monotonic()
    images, wanted = load_features(image_features), load_integers(labels)
    classes = load_features(class_features, axes=(2, 3))
    weights = class_weights(classes if classes.ndim == 3 else classes[:, None])
    found = zeroshot_metrics(images, wanted, weights, seed=seed)
    return answer(found, protocol, {"images": len(images), "classes": len(classes)}, start)


def load_features(path: Path, axes: tuple[int, ...] = (2,)) -> Tensor:
    """Read finite floats from a ``.npy`` file as float32; never unpickles.

    Raises:
        DataError: the file cannot be read, holds something else, or a row is not finite.
    """
    array = _load(path)
    if array.ndim not in axes or array.dtype.kind != "f":
        shapes = " or ".join("(rows, dim)" if n == 2 else "(classes, prompts, dim)" for n in axes)
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}: floats {shapes} are needed"
        )
    bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum())
    if bad:
        raise DataError(f"{bad} of {len(array)} rows of {path} hold NaN or infinity: extract again")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def load_integers(path: Path) -> Tensor:
    """Read a vector of integers from a ``.npy`` file as int64; never unpickles.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    array = _load(path)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}: a vector of integers is needed"
        )
    return torch.from_numpy(array.astype(np.int64))


def _load(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays: save the one array with numpy.save")
    return array
