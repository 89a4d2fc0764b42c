from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.images import (
    ImageRecord,
    ImageStore,
    finish_images,
    shard_name,
    write_shard,
)
from gmail_align.data.pairs import make_pairs, read_pairs
from gmail_align.errors import ArtifactError, DataError
from gmail_align.synthesis import run
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.noise import image_seed
from gmail_align.synthesis.pipelines import Sampler
from gmail_align.synthesis.run import synthesize, to_image
from gmail_align.synthesis.weights import weights_fingerprint

Build = Callable[..., SynthesisConfig]


def test_every_caption_gets_its_images(config: Build, captions: Artifact, tmp_path: Path) -> None:
    images = synthesize(config(images_per_caption=2), captions, tmp_path / "out")
    store = ImageStore(images)
    assert images.counts == {"images": 14, "quarantined": 0, "shards": 3}
    assert store.ids == [f"{100 + n}-{k}" for n in range(7) for k in (0, 1)]
    record = store.record("103-1")
    assert (record.source, record.generator, record.prompt) == ("generated", "tiny", "red ball")
    assert record.revision == weights_fingerprint(Path(config().model))
    assert record.seed == image_seed(0, "103", 1)
    assert (record.width, record.height, record.shard) == (64, 64, 1)
    assert store.read_bytes("103-1").startswith(b"\xff\xd8\xff")
    inputs = images.manifest["inputs"]
    assert inputs == {"captions": captions.fingerprint, "weights": record.revision}


def test_a_finished_run_is_not_run_again(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = synthesize(config(), captions, tmp_path / "out")
    monkeypatch.setattr(run, "load_pipeline", None)
    assert synthesize(config(batch_size=2), captions, tmp_path / "out") == first
    with pytest.raises(ArtifactError, match=r"config\.steps was 2 and is now 3"):
        synthesize(config(steps=3), captions, tmp_path / "out")
    with pytest.raises(ArtifactError, match="seed was 0 and is now 1"):
        synthesize(config(seed=1), captions, tmp_path / "out")
    with pytest.raises(ArtifactError, match="holds images, but captions are needed"):
        synthesize(config(), first, tmp_path / "other")


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = synthesize(config(batch_size=2), captions, tmp_path / "whole")
    calls: list[int] = []
    real = Sampler.__call__

    def killed(self: Sampler, requests: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, requests)

    monkeypatch.setattr(Sampler, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        synthesize(config(batch_size=2), captions, tmp_path / "killed")
    assert sorted(path.name for path in (tmp_path / "killed/shards").iterdir()) == [
        *("00000.jsonl", "00000.tar")
    ]
    resumed = synthesize(config(batch_size=2), captions, tmp_path / "killed")
    assert calls == [2, 1, 2, 1, 2, 1, 1]
    assert resumed.manifest["files"] == whole.manifest["files"]
    assert resumed.fingerprint == whole.fingerprint


def test_the_batch_size_does_not_change_the_images(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    stores = [
        ImageStore(
            synthesize(config(batch_size=size, shard_size=7), captions, tmp_path / str(size))
        )
        for size in (2, 3)
    ]
    for image_id in stores[0].ids:
        one, two = (np.asarray(store.read(image_id), dtype=np.int16) for store in stores)
        assert np.abs(one - two).max() <= 2


def test_png_is_lossless(config: Build, captions: Artifact, tmp_path: Path) -> None:
    images = synthesize(config(image_format="png", shard_size=7), captions, tmp_path / "out")
    assert ImageStore(images).read_bytes("100-0").startswith(b"\x89PNG")


def test_blank_and_broken_images_are_left_out(
    config: Build, captions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Sampler.__call__

    def broken(self: Sampler, requests: Any) -> Any:
        images = real(self, requests)
        for row, request in enumerate(requests):
            if request.caption_id == "102":
                images[row, 0, 0, 0] = float("nan")
            if request.caption_id == "104":
                images[row] = 0.2
        return images

    monkeypatch.setattr(Sampler, "__call__", broken)
    images = synthesize(config(limit_quarantine=0.3), captions, tmp_path / "out")
    assert ImageStore(images).ids == [f"{n}-0" for n in (100, 101, 103, 105, 106)]
    assert images.path("quarantine.jsonl").read_text().splitlines() == [
        '{"id": "102-0", "reason": "the generator gave values that are not finite"}',
        '{"id": "104-0", "reason": "the generator gave a blank image"}',
    ]
    with pytest.raises(DataError, match="1 of 7 images cannot be used"):
        synthesize(config(), captions, tmp_path / "strict")


def test_pixels_round_to_bytes() -> None:
    pixels = torch.tensor([0.0, 0.5, 1.2]).view(1, 1, 3).expand(3, 1, 3)
    assert np.asarray(to_image(pixels))[0, :, 0].tolist() == [0, 128, 255]


def test_pairs_are_made_of_what_was_generated(
    config: Build, captions: Artifact, tmp_path: Path
) -> None:
    images = synthesize(config(shard_size=7), captions, tmp_path / "out")
    data = ImageStore(images).read_bytes("100-0")
    draft = begin(tmp_path / "real", "images", {})
    samples = [(ImageRecord(id=str(n), width=64, height=64), data) for n in range(7)]
    write_shard(draft.path(shard_name(0)), samples)
    pairs = make_pairs(captions, finish_images(draft), images, tmp_path / "pairs")
    assert [pair.generated_image_id for pair in read_pairs(pairs)] == ImageStore(images).ids


def test_the_configuration_imports_no_torch() -> None:
    code = "import gmail_align.synthesis.config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
