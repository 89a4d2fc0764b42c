"""Features of pairs: generated ones are real ones, partly replaced by noise and moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, write_bytes, write_jsonl

MakeFeatures = Callable[[str, list[str], Tensor], Artifact]


@pytest.fixture
def make_features(tmp_path: Path) -> MakeFeatures:
    """Write a ``features`` artifact into a folder of the test's own."""

    def make(name: str, ids: list[str], array: Tensor) -> Artifact:
        draft = begin(tmp_path / name, "features", {"encoder": "clip", "route": "frozen"})
        write_jsonl(draft.path("ids.jsonl"), ids)
        write_bytes(draft.path("features.safetensors"), save({"features": array.contiguous()}))
        return draft.finish({"rows": len(ids)})

    return make


def pairs_of(count: int, *, noise: float, shift: float, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Draw real features and generated ones that differ by ``noise`` and by a common ``shift``."""
    rng = torch.Generator().manual_seed(count)
    real = torch.randn(count, dim, generator=rng)
    generated = real + noise * torch.randn(count, dim, generator=rng)
    generated[:, 0] += shift
    return real, generated
