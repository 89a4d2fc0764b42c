"""A tiny random GPT-2 with a tokenizer of its own, and features written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gmail_align.artifacts import Artifact
from gmail_align.captioning.clipcap.config import ClipCapConfig, MapperShape
from gmail_align.captioning.clipcap.model import ClipCap
from gmail_align.captioning.inputs import CaptionerData
from gmail_align.captioning.training import train_captioner
from gmail_align.encoders.language import load_language_model
from gmail_align.training.config import OptimConfig
from worlds.captioning import CAPTIONS, Rows, build_gpt2, captioned, write_features

ROWS = list(zip("abcd", CAPTIONS, strict=True))
MakeFeatures = Callable[..., Artifact]


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def clipcap(gpt2: Path) -> ClipCap:
    """An untrained captioner of features 8 wide, with a prefix of 3."""
    torch.manual_seed(1)
    return ClipCap(load_language_model(gpt2), 8, MapperShape(prefix_length=3)).eval()


@pytest.fixture
def make_features(tmp_path: Path) -> MakeFeatures:
    """Write features into a folder of the test's own."""

    def make(name: str, ids: list[str], array: Tensor, **config: str) -> Artifact:
        return write_features(tmp_path / name, ids, array, **config)

    return make


def quick(steps: int, **optim: object) -> ClipCapConfig:
    """A small captioner for a few steps."""
    settings = {"lr": 5e-3, "schedule": "constant", "weight_decay": 0.0, **optim}
    return ClipCapConfig(
        prefix_length=3,
        max_tokens=40,
        batch_size=4,
        device="cpu",
        optim=OptimConfig(steps=steps, **settings),
    )


def train_clipcap(
    config: ClipCapConfig,
    features: Artifact,
    rows: Rows,
    language_model: Path | Artifact,
    out: Path,
    *,
    validation: tuple[Artifact, Rows] | None = None,
    more: Sequence[tuple[Artifact, Rows]] = (),
) -> Artifact:
    """Train on (image id, caption) instead of on artifacts of captions."""
    images = tuple(captioned(*part) for part in ((features, rows), *more))
    held_out = captioned(*validation) if validation else None
    return train_captioner(config, CaptionerData(images, validation=held_out), language_model, out)


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Four random features."""
    torch.manual_seed(2)
    return write_features(tmp_path_factory.mktemp("four") / "four", list("abcd"), torch.randn(4, 8))


@pytest.fixture(scope="session")
def captioner(gpt2: Path, four: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A captioner that knows the four captions of the four features by heart."""
    return train_clipcap(quick(120), four, ROWS, gpt2, tmp_path_factory.mktemp("captioner") / "out")
