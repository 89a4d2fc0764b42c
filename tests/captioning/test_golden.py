"""The shipped GPT-2 trains and captions as it always did, to the digits that are recorded here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmail_align.artifacts import Artifact, read_jsonl
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.inputs import CaptionerData
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.training import train_captioner
from gmail_align.encoders.shipped import model_path
from gmail_align.training.config import OptimConfig
from worlds.captioning import captioned, write_features

from .conftest import ROWS

TRANSFORMER = {"mapper": "transformer", "clip_length": 3, "layers": 2, "heads": 4}


@pytest.fixture
def features(tmp_path: Path) -> Artifact:
    generator = torch.Generator().manual_seed(0)
    return write_features(tmp_path / "four", list("abcd"), torch.randn(4, 8, generator=generator))


@pytest.mark.parametrize(
    ("shape", "losses", "texts", "scores"),
    [
        (
            {},
            [8.066776, 5.403236, 4.668462, 3.30605],
            [*["There is one of two objects on a wooden floor."] * 3, "There is a wooden floor."],
            [-0.52523, -0.49884, -0.43771, -0.71859],
        ),
        (
            TRANSFORMER,
            [7.871595, 6.112422, 5.914204, 4.492594],
            [
                *["There is a large matte orange cone."] * 2,
                "There is a grey floor.",
                "There is a large matte orange cone.",
            ],
            [-1.12056, -1.1333, -0.77445, -1.12944],
        ),
    ],
    ids=["mlp", "transformer"],
)
def test_losses_and_captions_are_the_recorded_ones(
    features: Artifact,
    tmp_path: Path,
    shape: dict[str, object],
    losses: list[float],
    texts: list[str],
    scores: list[float],
) -> None:
    optim = OptimConfig(steps=4, lr=1e-3, schedule="linear", warmup=2)
    settings = {"prefix_length": 3, "max_tokens": 30, "batch_size": 3, "device": "cpu"}
    config = ClipCapConfig(optim=optim, **settings, **shape)
    data = CaptionerData((captioned(features, ROWS),))
    out = train_captioner(config, data, model_path("tabletop", "gpt2"), tmp_path / "out", seed=1)
    result = [row["total"] for row in read_jsonl(out.path("events.jsonl"))]
    said = predict_captions(out, features, tmp_path / "said", PredictConfig(device="cpu", beam=3))
    rows = list(read_jsonl(said.path("predictions.jsonl")))
    assert result == pytest.approx(losses, abs=1e-4)
    assert [row["text"] for row in rows] == texts
    assert [row["log_prob"] for row in rows] == pytest.approx(scores, abs=1e-3)
