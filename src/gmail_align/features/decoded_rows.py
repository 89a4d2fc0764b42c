"""Images that worker processes decode whenever they are read, because a cache would be too large.

Each worker opens the image store once. A worker that is killed is replaced, and one whose parent
was killed ends by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import get_context
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt8
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.data.images import ImageStore
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.engine import RETRIES, begin_helper
from gmail_align.errors import GmailAlignError
from gmail_align.progress import say

WORKERS = 16
"""At most so many processes decode: more would wait for the disk, and each takes 0.3 GB."""
_CHUNK = 8
"""Images that a worker is given at a time."""


class DecodedRows:
    """Images that are decoded, resized and cropped whenever they are read, by worker processes.

    Args:
        store: The image store.
        preprocess: Resizing and cropping.
        names: Image id of each row.
    """

    def __init__(self, store: ImageStore, preprocess: Preprocess, names: Sequence[str]) -> None:
        self._store, self._preprocess, self._names = store, preprocess, names
        self._pool: ProcessPoolExecutor | None = None
        self._turn = threading.Lock()

    def __getitem__(self, rows: slice | Tensor) -> UInt8[Tensor, "k 3 s s"]:
        """Decode the images of some rows.

        Raises:
            DataError: an image cannot be decoded.
            GmailAlignError: workers were killed again and again.
        """
        every = range(len(self._names))
        places = every[rows] if isinstance(rows, slice) else rows.tolist()
        own = [self._names[place] for place in places]
        chunks = [own[start : start + _CHUNK] for start in range(0, len(own), _CHUNK)]
        parts = [torch.from_numpy(part) for part in self._decode(chunks)]
        return torch.cat([self._preprocess.pixels([]), *parts])

    def _decode(self, chunks: list[list[str]]) -> list[npt.NDArray[np.uint8]]:
        with self._turn:  # the next batch and the held-out images may be read at once
            for _ in range(RETRIES):
                self._pool = self._pool or self._begin()
                try:
                    return list(self._pool.map(_decode_in_worker, chunks))
                except BrokenProcessPool:
                    say("a process that decodes images was killed: new ones begin")
                    self._pool.shutdown()
                    self._pool = None
        raise GmailAlignError(
            f"processes that decode images were killed {RETRIES} times, perhaps because memory ran "
            "out: keep the decoded images with a larger --cache-limit"
        )

    def _begin(self) -> ProcessPoolExecutor:
        context = get_context("spawn")
        given = (self._store.artifact, self._preprocess, context.Lock())
        pool = ProcessPoolExecutor(_workers(), context, _begin_worker, given)
        finalize(self, pool.shutdown)  # before Python takes its modules apart
        return pool


def _workers() -> int:
    """Share the cores that this process may use among the training's processes of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(WORKERS, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


_worker: tuple[ImageStore, Preprocess] | None = None  # of the worker process that this is


def _begin_worker(
    artifact: Artifact, preprocess: Preprocess, large: AbstractContextManager[Any]
) -> None:
    global _worker
    begin_helper(threads=1)
    _worker = ImageStore(artifact, large), preprocess


def _decode_in_worker(names: list[str]) -> npt.NDArray[np.uint8]:
    assert _worker is not None
    store, preprocess = _worker
    parts = [store.reduce(name, lambda image: preprocess.pixels([image])) for name in names]
    return torch.cat(parts).numpy()
