"""Reading ahead holds few bytes of pixels, keeps the order, and never waits for itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align.data.decode import read_header
from gmail_align.data.images import ImageStore
from gmail_align.importing import ahead
from gmail_align.importing.admission import admit
from gmail_align.importing.ahead import Budget
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data


def test_pixels_in_flight_are_bounded_whatever_the_files_weigh(
    tmp_path: Path, make_picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    sizes = [(300, 200), (20, 20), (300, 200), (40, 30), (300, 200), (10, 10)] * 4
    for number, size in enumerate(sizes):
        form = ("png", "tiff", "bmp")[number % 3]
        picture = make_picture(number, form.upper(), size)
        (tmp_path / f"in/{number:02d}.{form}").write_bytes(picture)
    largest = 300 * 200 * 8
    running: dict[int, int] = {}
    peaks: list[int] = []

    def counted(*values: Any, **named: Any) -> Any:
        running[threading.get_ident()] = read_header(values[1]).decoded_bytes
        peaks.append(sum(running.values()))
        time.sleep(0.002)
        try:
            return admit(*values, **named)
        finally:
            del running[threading.get_ident()]

    monkeypatch.setattr(ahead, "admit", counted)
    monkeypatch.setattr(ahead, "_DECODED", largest // 2)
    monkeypatch.setattr(ahead, "_LARGE", 1 << 40)  # the budget alone has to hold
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 8)
    made = import_data("folder", {"source": tmp_path / "in"}, tmp_path / "out")
    assert ImageStore(made["images"]).ids == [f"{number:02d}" for number in range(len(sizes))]
    assert max(peaks) <= largest + largest // 2


def test_a_failure_while_images_wait_for_memory_ends_the_import(
    tmp_path: Path, make_picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(9):
        (tmp_path / f"in/{number}.png").write_bytes(make_picture(number, "PNG", (90, 80)))
    monkeypatch.setattr(ahead, "_DECODED", 1)

    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(ahead, "admit", broken)
    options = ImportOptions(limit_quarantine=1.0)
    with pytest.raises(MemoryError):
        import_data("folder", {"source": tmp_path / "in"}, tmp_path / "out", options)


def test_the_first_image_never_waits() -> None:
    budget = Budget(10)
    budget.take(1, 9)
    budget.take(0, 1000)
    late = threading.Thread(target=budget.take, args=(2, 5))
    late.start()
    budget.begin(1)
    budget.keep(1, 6)
    late.join(0.05)
    assert late.is_alive()
    budget.keep(1, 5)
    late.join(5)
    assert not late.is_alive()
