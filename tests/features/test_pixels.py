"""Decoded pixels: normalised, they are exactly what preprocessing the image gives."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from gmail_align.artifacts import Artifact, load
from gmail_align.data.images import ImageStore
from gmail_align.encoders.preprocess import Preprocess
from gmail_align.errors import ArtifactError, DataError
from gmail_align.features import pixels as module
from gmail_align.features.pixels import prepare_pixels, read_pixels

PREPROCESS = Preprocess(size=32)


def test_rows_equal_preprocessing_exactly(world: Any, tmp_path: Path) -> None:
    result = read_pixels(prepare_pixels(world.real, PREPROCESS, tmp_path / "p"))
    store = ImageStore(world.real)
    assert list(result.ids) == store.ids
    assert result.array.dtype == torch.uint8
    expected = PREPROCESS([store.read(name) for name in store.ids])
    assert torch.equal(PREPROCESS.normalise(result.array), expected)
    wanted = ["r7", "r0", "r7"]
    assert result.rows(wanted).tolist() == [store.ids.index(name) for name in wanted]


def test_chosen_ids_keep_their_order(world: Any, tmp_path: Path) -> None:
    result = read_pixels(prepare_pixels(world.real, PREPROCESS, tmp_path / "p", ids=["r9", "r2"]))
    store = ImageStore(world.real)
    assert list(result.ids) == ["r9", "r2"]
    expected = PREPROCESS([store.read("r9"), store.read("r2")])
    assert torch.equal(PREPROCESS.normalise(result.array), expected)


def test_a_killed_preparation_ends_with_the_same_bytes(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_pixels(world.generated, PREPROCESS, tmp_path / "whole")
    monkeypatch.setattr(module, "_BATCH", 5)
    read, calls = ImageStore.read, [0]

    def dying(self: ImageStore, name: str) -> Any:
        calls[0] += 1
        if calls[0] > 12:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(ImageStore, "read", dying)
    try:
        prepare_pixels(world.generated, PREPROCESS, tmp_path / "killed")
    except KeyboardInterrupt:
        calls[0] = -1000
    gc.collect()  # the error's frames keep the folder's lease, which a killed process would not
    again = prepare_pixels(world.generated, PREPROCESS, tmp_path / "killed")
    assert calls[0] <= -1000 + 24 - 5
    assert again.fingerprint == whole.fingerprint


def test_a_finished_preparation_is_not_repeated(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_pixels(world.real, PREPROCESS, tmp_path / "p")
    monkeypatch.setattr(module, "fill_rows", None)
    assert prepare_pixels(world.real, PREPROCESS, tmp_path / "p") == first
    for change in ({"preprocess": Preprocess(size=16)}, {"ids": ["r1"]}):
        given = {"preprocess": PREPROCESS, "ids": None, **change}
        with pytest.raises(ArtifactError, match="belongs to another run"):
            prepare_pixels(world.real, given["preprocess"], tmp_path / "p", ids=given["ids"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["r1", "nobody"], "1 of 2 images are not in"), (["r1", "r1"], "twice"), ([], "missing")],
)
def test_ids_that_do_not_fit_are_refused(
    ids: list[str], message: str, world: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        prepare_pixels(world.real, PREPROCESS, tmp_path / "p", ids=ids)


def test_a_damaged_artifact_is_refused(world: Any, tmp_path: Path) -> None:
    made = prepare_pixels(world.real, PREPROCESS, tmp_path / "p")
    made.path("pixels.u8").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="damaged"):
        read_pixels(load(made.folder))
    with pytest.raises(ArtifactError, match="holds images"):
        read_pixels(world.real)
    assert isinstance(made, Artifact)
