"""A run that is killed with SIGKILL again and again, in processes of its own."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align.artifacts import Artifact, begin, load
from gmail_align.data.captions import Caption, write_captions
from gmail_align.data.images import ImageStore
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.run import synthesize
from gmail_align.synthesis.sampler import Sampler

Build = Callable[..., SynthesisConfig]


def generate(config: SynthesisConfig, captions: Path, out: Path) -> None:
    """Run in a child; a byte in ``OUT.log`` for each batch that was sampled."""
    real = Sampler.__call__

    def slow(self: Sampler, requests: Any) -> Any:
        images = real(self, requests)
        with out.with_suffix(".log").open("ab") as log:
            log.write(b".")
        time.sleep(0.02)  # a batch takes long enough to be hit
        return images

    Sampler.__call__ = slow  # type: ignore[method-assign]
    synthesize(config, load(captions), out)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_images(
    config: Build, tmp_path: Path, kills: int
) -> None:
    count = 12 * kills
    captions = many(tmp_path / "captions", count)
    settings = config(batch_size=2, shard_size=11, writers=1, steps=1)
    whole = synthesize(settings, captions, tmp_path / "whole")
    out = tmp_path / "killed"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gmail_align.synthesis.run", "diffusers"])
    source = random.Random(0)
    done = 0
    for _ in range(kills):
        process = context.Process(target=generate, args=(settings, captions.folder, out))
        process.start()
        log = out.with_suffix(".log")
        while process.is_alive() and (log.stat().st_size if log.exists() else 0) <= done:
            time.sleep(0.002)  # until it makes something
        time.sleep(source.uniform(0, 0.1))
        assert process.is_alive()
        process.kill()
        process.join()
        done = log.stat().st_size
    resumed = synthesize(settings, captions, out)
    assert ImageStore(resumed).ids == [f"{number}-0" for number in range(count)]
    assert resumed.manifest["files"] == whole.manifest["files"]
    assert resumed.fingerprint == whole.fingerprint


def many(folder: Path, count: int) -> Artifact:
    draft = begin(folder, "captions", {})
    rows = (Caption(str(number), "a red ball", str(number)) for number in range(count))
    return draft.finish({"captions": write_captions(draft, rows)})
