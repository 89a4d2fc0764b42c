"""What lies on a disk becomes features of one route, of images and of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.features.store import open_features
from gmail_align.gap.prepare import Source, prepare


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    for kind in ("real", "made"):
        for name in ("red", "blue"):
            for number in range(2):
                path = tmp_path / kind / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "real", tmp_path / "made"


def test_frozen_images_are_read_by_frozen_texts(folders: tuple[Path, Path], tmp_path: Path) -> None:
    lora = LoraSettings(towers="both")
    encoder = GmailEncoder.from_clip(model_path("tabletop", "clip"), lora=lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ready = prepare(Source(*folders, tmp_path / "home"), encoder)
    texts = ready.known.texts
    assert texts is not None and open_features(ready.real).made_with["route"] == "frozen"
    assert texts.made_with["weights"] == encoder.text_fingerprint(Route.FROZEN)
    assert texts.made_with["weights"] != encoder.text_fingerprint(Route.REAL)
