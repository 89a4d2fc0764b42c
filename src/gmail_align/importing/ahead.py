"""Reading ahead: images are read, checked and decoded in threads, within a bound of memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final

from gmail_align.data.decode import read_header
from gmail_align.data.images import Quarantined, Sample
from gmail_align.errors import DataError
from gmail_align.importing.admission import admit, change_of
from gmail_align.importing.members import Members
from gmail_align.importing.source import Source
from gmail_align.importing.staging import StagedImage

Loaded = tuple[Sample | Quarantined, str]
"""An image that was read, or why it is left out; and what was changed in it."""

_WINDOW: Final = 32  # images that are read ahead of the one that is written
_ENCODED: Final = 128 * 2**20  # bytes of their files
_DECODED: Final = 128 * 2**20  # bytes of their pixels, and of what is kept of them
_LARGE: Final = 64 * 2**20  # bytes of pixels of an image for the thread of large ones


class Budget:
    """Bytes that several threads hold, each for the image of one place in an order.

    The first image in the order that is not written yet always gets what it needs: the others wait
    for it, so that they can never hold it up.
    """

    def __init__(self, limit: int) -> None:
        """Allow ``limit`` bytes; the first image may exceed them."""
        self._limit = limit
        self._held: dict[int, int] = {}
        self._first = 0
        self._changed = threading.Condition()

    def take(self, place: int, size: int) -> None:
        """Wait until ``size`` bytes are free, then hold them."""
        with self._changed:
            self._changed.wait_for(
                lambda: place <= self._first or sum(self._held.values()) + size <= self._limit
            )
            self._held[place] = size

    def keep(self, place: int, size: int) -> None:
        """Hold ``size`` bytes instead of what was taken."""
        with self._changed:
            self._held[place] = size
            self._changed.notify_all()

    def begin(self, place: int) -> None:
        """Say which image is the first that is not written; those before it hold nothing more."""
        with self._changed:
            self._first = place
            self._held = {k: size for k, size in self._held.items() if k >= place}
            self._changed.notify_all()


def read_ahead(images: Sequence[StagedImage], source: Source, convert: bool) -> Iterator[Loaded]:
    """Yield the images in order, and what was changed; some are read and decoded ahead in threads.

    How many depends on their number, on their bytes and on their pixels, so that many large images
    do not fill memory. Large images have a thread of their own, as each thread that decoded one
    keeps some of the memory that it took.
    """
    members = source.members
    assert members is not None
    budget = Budget(_DECODED)

    def load(place: int, image: StagedImage, data: bytes | DataError | None) -> Loaded:
        try:
            if isinstance(data, DataError):
                raise data
            encoded = members.read(image.place) if data is None else data
            size = read_header(encoded).decoded_bytes
            budget.take(place, size)
            job = partial(admit, image.image_id, encoded, name=image.place, convert=convert)
            record, kept = large.submit(job).result() if size > _LARGE else job()
            change = change_of(encoded, kept) if convert or kept is not encoded else ""
            budget.keep(place, len(kept))
        except DataError as error:
            budget.keep(place, 0)
            return Quarantined(image.image_id, str(error)), ""
        record = replace(record, prompt=image.prompt, **dict(source.record))  # type: ignore[arg-type]
        return (record, kept), change

    waiting: deque[tuple[Future[Loaded], int]] = deque()
    held = written = 0
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(1) as large, ThreadPoolExecutor(workers) as pool:
        try:
            for place, image in enumerate(images):
                data = _read_now(members, image) if members.serial else None
                size = len(data) if isinstance(data, bytes) else members.stamp(image.place)[0]
                while waiting and (len(waiting) == _WINDOW or held + size > _ENCODED):
                    future, freed = waiting.popleft()
                    yield future.result()
                    written, held = written + 1, held - freed
                    budget.begin(written)
                waiting.append((pool.submit(load, place, image, data), size))
                held += size
            while waiting:
                yield waiting.popleft()[0].result()
                written += 1
                budget.begin(written)
        finally:
            budget.begin(len(images))  # whatever stopped the reader, no thread waits any more
            pool.shutdown(cancel_futures=True)


def _read_now(members: Members, image: StagedImage) -> bytes | DataError:
    try:
        return members.read(image.place)
    except DataError as error:
        return error
