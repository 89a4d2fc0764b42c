"""Features of pairs: generated ones are real ones, partly replaced by noise and moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, write_bytes, write_jsonl
from gmail_align.gap.feature_sets import FeatureSet

MakeFeatures = Callable[..., Artifact]


@pytest.fixture
def make_features(tmp_path: Path) -> MakeFeatures:
    """Write a ``features`` artifact into a folder of the test's own."""

    def make(name: str, ids: list[str], array: Tensor, **made_with: str) -> Artifact:
        config = {"encoder": "clip", "route": "frozen", **made_with}
        draft = begin(tmp_path / name, "features", config)
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


def classes_of(
    *, noise: float, follow: bool = True, worse: str = "", each: int = 40
) -> tuple[FeatureSet, FeatureSet]:
    """Draw three classes of so many images in each set, made by two generators by turns.

    The generated ones ``follow`` their class, or none; the generator ``worse`` is far off.
    """
    rng = torch.Generator().manual_seed(7)
    names = [name for name in ("cat", "dog", "ship") for _ in range(each)]
    centres = 2 * torch.randn(3, 12, generator=rng)
    own = torch.arange(3).repeat_interleave(each)
    real = centres[own] + torch.randn(3 * each, 12, generator=rng)
    meant = own if follow else own[torch.randperm(3 * each, generator=rng)]
    made = centres[meant] + torch.randn(3 * each, 12, generator=rng)
    made += noise * torch.randn(3 * each, 12, generator=rng)
    generators = ["sd-good", "sd-worse"] * (3 * each // 2)
    if worse:
        made[[name == worse for name in generators]] += 2
    return FeatureSet(real, names), FeatureSet(made, names, generators)
