"""A head of features as ONNX and as a plain matrix, run by the libraries of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from gmail_align.artifacts import Artifact, begin
from gmail_align.encoders.feature_map import KIND, Bend, FeatureMap
from gmail_align.errors import DataError, ModelError
from gmail_align.export.config import ExportConfig
from gmail_align.export.run import export


def head_in(folder: Path, *, bent: bool) -> tuple[Artifact, FeatureMap]:
    rng = torch.Generator().manual_seed(0)
    draw = [torch.randn(shape, generator=rng) for shape in ((6, 6), (6,), (3, 6), (3,), (6, 3))]
    head = FeatureMap(draw[0], draw[1], Bend(*draw[2:]) if bent else None)
    draft = begin(folder, KIND, {})
    head.save(folder)
    return draft.finish({}), head


@pytest.mark.parametrize("bent", [False, True])
def test_onnxruntime_maps_as_the_head_does(bent: bool, tmp_path: Path) -> None:
    made, head = head_in(tmp_path / "head", bent=bent)
    out = export(ExportConfig(format="onnx"), made.folder, tmp_path / "onnx")
    session = onnxruntime.InferenceSession(str(out.path("model.onnx")))
    rows = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    result = session.run(["aligned"], {"features": rows})[0]
    assert result == pytest.approx(head(torch.from_numpy(rows)).numpy(), abs=1e-4)


def test_the_matrix_alone(tmp_path: Path) -> None:
    made, head = head_in(tmp_path / "head", bent=False)
    out = export(ExportConfig(format="safetensors"), made.folder, tmp_path / "matrix")
    tensors = load_file(out.path("head.safetensors"))
    rows = np.ones((2, 6), np.float32)
    expected = head(torch.from_numpy(rows)).numpy()
    assert rows @ tensors["matrix"].T + tensors["shift"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(DataError, match="6"):
        head(torch.ones(2, 5))


def test_a_format_without_a_place_leaves_nothing(tmp_path: Path) -> None:
    made, _ = head_in(tmp_path / "head", bent=True)
    for name in ("safetensors", "hf"):
        with pytest.raises(ModelError):
            export(ExportConfig(format=name), made.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
