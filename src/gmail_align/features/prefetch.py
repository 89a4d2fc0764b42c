"""Load the next batch while the present one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetch(load: Callable[[int], T], count: int) -> Iterator[Callable[[int], T]]:
    """Open a version of ``load`` that loads item ``i + 1`` in a thread when ``i`` is asked for.

    ``load`` is a pure function of ``i``, so order and repetition do not matter.

    Args:
        load: Index -> item.
        count: Indices at and beyond this are never loaded ahead.
    """
    pending: dict[int, Future[T]] = {}
    with ThreadPoolExecutor(1) as pool:

        def fetch(index: int) -> T:
            future = pending.pop(index, None)
            for other in pending.values():
                other.cancel()
            pending.clear()
            item = load(index) if future is None else future.result()
            if index + 1 < count:
                pending[index + 1] = pool.submit(load, index + 1)
            return item

        yield fetch
