"""Artifacts written by hand: features and predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, write_bytes, write_jsonl
from gmail_align.data.captions import Caption, write_captions

MakeFeatures = Callable[..., Artifact]
MakeCaptions = Callable[[str, list[tuple[str, str]]], Artifact]
MakePredictions = Callable[[str, Mapping[str, str]], Artifact]
SaveArray = Callable[[str, object], Path]


@pytest.fixture
def make_features(tmp_path: Path) -> MakeFeatures:
    """Write a ``features`` artifact into a folder of the test's own."""

    def make(name: str, ids: list[str], array: Tensor, **made_with: str) -> Artifact:
        config = {"encoder": "clip", "route": "real", **made_with}
        draft = begin(tmp_path / name, "features", config)
        write_jsonl(draft.path("ids.jsonl"), ids)
        write_bytes(draft.path("features.safetensors"), save({"features": array.contiguous()}))
        return draft.finish({"rows": len(ids)})

    return make


@pytest.fixture
def make_captions(tmp_path: Path) -> MakeCaptions:
    """Write a ``captions`` artifact of (caption id, image id) rows."""

    def make(name: str, rows: list[tuple[str, str]]) -> Artifact:
        draft = begin(tmp_path / name, "captions", {"rows": [list(row) for row in rows]})
        captions = [Caption(one, f"text {number}", i) for number, (one, i) in enumerate(rows)]
        return draft.finish({"captions": write_captions(draft, captions)})

    return make


@pytest.fixture
def make_predictions(tmp_path: Path) -> MakePredictions:
    """Write a ``predictions`` artifact into a folder of the test's own."""

    def make(name: str, captions: Mapping[str, str]) -> Artifact:
        draft = begin(tmp_path / name, "predictions", {"route": "real"})
        rows = [{"image_id": i, "text": t, "log_prob": -1.0} for i, t in captions.items()]
        write_jsonl(draft.path("predictions.jsonl"), [row | {"route": "real"} for row in rows])
        return draft.finish({"images": len(rows)})

    return make


@pytest.fixture
def save_array(tmp_path: Path) -> SaveArray:
    """Write a ``.npy`` file."""

    def write(name: str, array: object) -> Path:
        np.save(tmp_path / name, np.asarray(array))
        return tmp_path / name

    return write
