"""Artifacts written by hand: features and predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import save
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, write_bytes, write_jsonl

MakeFeatures = Callable[[str, list[str], Tensor], Artifact]
MakePredictions = Callable[[str, Mapping[str, str]], Artifact]


@pytest.fixture
def make_features(tmp_path: Path) -> MakeFeatures:
    """Write a ``features`` artifact into a folder of the test's own."""

    def make(name: str, ids: list[str], array: Tensor) -> Artifact:
        draft = begin(tmp_path / name, "features", {"encoder": "clip", "route": "real"})
        write_jsonl(draft.path("ids.jsonl"), ids)
        write_bytes(draft.path("features.safetensors"), save({"features": array.contiguous()}))
        return draft.finish({"rows": len(ids)})

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
