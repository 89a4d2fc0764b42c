"""Exports of a head of features: one ONNX graph, or its plain matrix as safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import load_file
from torch import Tensor, nn

from gmail_align.artifacts import Artifact, begin, write_bytes
from gmail_align.encoders.feature_map import HEAD, FeatureMap
from gmail_align.encoders.probe import compare
from gmail_align.errors import ModelError
from gmail_align.export.config import ExportConfig
from gmail_align.export.others import ONNX, OPSET, quiet
from gmail_align.extras import require

_ROWS: Final = 5
_USE: Final = {
    "onnx": "`onnxruntime.InferenceSession('model.onnx').run(['aligned'], {'features': rows})`",
    "safetensors": "`aligned = rows @ matrix.T + shift`, both from `head.safetensors`",
}
"""How each format is used."""


def export_feature_head(config: ExportConfig, head: Artifact, out: Path) -> Artifact:
    """Write a head of features for other libraries; an artifact of kind ``export``.

    What is written is read again by the library of the format, and has to give the same features.

    Args:
        config: The format; a head does not have routes.
        head: What ``align features`` made.
        out: Folder of the export.

    Raises:
        ModelError: the format has no place for the head, or the features differ.
        MissingExtraError: a library that the format takes is not installed.
    """
    learnt = FeatureMap.load(head.folder)
    if config.format not in _USE:
        raise ModelError(
            f"the format {config.format} has no place for a head of features: use one of "
            f"{', '.join(_USE)}"
        )
    if config.format == "safetensors" and learnt.bend is not None:
        raise ModelError("an MLP is not one matrix: export it as onnx")
    draft = begin(out, "export", {"format": config.format}, {"head": head})
    if draft.complete is not None:
        return draft.complete
    write = _write_onnx if config.format == "onnx" else _write_matrix
    rows = torch.randn(_ROWS, learnt.dim, generator=torch.Generator().manual_seed(0))
    run = write(learnt, out)
    difference = compare(run(rows), learnt(rows), f"the head as {config.format}")
    text = f"# Head of generated features\n\n{_USE[config.format]}\n\nRows are not normalised.\n"
    write_bytes(draft.path("README.md"), text.encode())
    return draft.finish({"files": len(draft.files())}, checked={"differences": difference})


class _Head(nn.Module):
    """A map as a module, for the exporter."""

    def __init__(self, head: FeatureMap) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Map features."""
        return self.head(features)


def _write_onnx(head: FeatureMap, out: Path) -> Callable[[Tensor], Tensor]:
    onnxruntime: Any = require("onnxruntime", "export")
    require("onnxscript", "export")
    with warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            _Head(head).eval(),
            (torch.zeros(2, head.dim),),
            str(out / ONNX),
            input_names=["features"],
            output_names=["aligned"],
            dynamic_shapes={"features": {0: torch.export.Dim("rows")}},
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(out / ONNX), providers=["CPUExecutionProvider"])

    def run(rows: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(["aligned"], {"features": rows.numpy()})[0]))

    return run


def _write_matrix(head: FeatureMap, out: Path) -> Callable[[Tensor], Tensor]:
    head.save(out)
    tensors = load_file(out / HEAD)

    def run(rows: Tensor) -> Tensor:
        return torch.from_numpy(rows.numpy() @ tensors["matrix"].T + tensors["shift"])

    return run
