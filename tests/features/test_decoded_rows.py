"""Images decoded when read: what workers return is what preprocessing gives, after kills too."""

from __future__ import annotations

import multiprocessing
from typing import Any

import psutil
import pytest
import torch

from gmail_align.data.images import ImageStore
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.errors import DataError, GmailAlignError
from gmail_align.features import decoded_rows as module
from gmail_align.features.decoded_rows import DecodedRows

PREPROCESS = Preprocess(size=32)


def workers() -> list[psutil.Process]:
    return [psutil.Process(child.pid) for child in multiprocessing.active_children()]


def test_workers_decode_as_preprocessing_does_and_are_replaced_when_killed(world: Any) -> None:
    store = ImageStore(world.real)
    names = list(reversed(store.ids))
    rows = DecodedRows(store, PREPROCESS, names)
    expected = PREPROCESS([store.read(name) for name in names])
    assert torch.equal(PREPROCESS.normalise(rows[:]), expected)
    own = workers()
    assert own
    assert all(worker.pid != psutil.Process().pid for worker in own)
    some = torch.tensor([3, 0, 3])
    assert torch.equal(PREPROCESS.normalise(rows[some]), expected[some])
    assert tuple(rows[torch.tensor([], dtype=torch.int64)].shape) == (0, 3, 32, 32)
    for worker in own:
        worker.kill()
    assert torch.equal(PREPROCESS.normalise(rows[2:9]), expected[2:9])


def test_an_image_that_is_gone_is_named(world: Any) -> None:
    rows = DecodedRows(ImageStore(world.real), PREPROCESS, ["r1", "absent"])
    with pytest.raises(DataError, match="absent"):
        rows[:]


def test_workers_that_always_die_are_told_of(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES", 1)
    rows = DecodedRows(ImageStore(world.real), PREPROCESS, ["r1", "r2"])
    monkeypatch.setattr(module, "_decode_in_worker", die)
    with pytest.raises(GmailAlignError, match="cache-limit"):
        rows[:]


def die(names: list[str]) -> None:
    psutil.Process().kill()
