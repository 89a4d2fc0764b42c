from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align.artifacts import Artifact, begin
from gmail_align.data.captions import Caption, write_captions
from gmail_align.synthesis.config import SynthesisConfig
from worlds.pipelines import write_sd


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a StableDiffusionPipeline of random weights that draws 64 x 64 pixels."""
    return write_sd(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def config(model: Path) -> Callable[..., SynthesisConfig]:
    """Return a builder of configurations of the tiny pipeline."""

    def build(**changes: Any) -> SynthesisConfig:
        values = {
            "model": str(model),
            "steps": 2,
            "batch_size": 4,
            "shard_size": 3,
            "device": "cpu",
        }
        return SynthesisConfig(**{**values, **changes})

    return build


@pytest.fixture
def captions(tmp_path: Path) -> Artifact:
    """Return seven captions, two of them alike."""
    texts = ["a cat", "a dog", "a cat", "red ball", "blue ball", "green cube", "two cones"]
    draft = begin(tmp_path / "captions", "captions", {})
    rows = [Caption(str(100 + n), text, str(n)) for n, text in enumerate(texts)]
    return draft.finish({"captions": write_captions(draft, rows)})
