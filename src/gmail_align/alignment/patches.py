"""The targets of the patch term: what the frozen trunk makes of the patches of real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy.typing as npt
import torch
from torch import Tensor

from gmail_align.artifacts import Artifact, begin, fingerprint, write_jsonl
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.features.pixels import Pixels
from gmail_align.features.rows import fill_rows
from gmail_align.features.store import IDS, feature_file


def extract_patches(
    images: Artifact, pixels: Pixels, encoder: GmailEncoder, out: Path, *, batch_size: int = 64
) -> Artifact:
    """Extract the mean of each image's frozen patch tokens before the last layer.

    Means, because a real and a generated image of one caption show things in different places.

    Args:
        images: The image store that the pixels came from.
        pixels: Its images, prepared with the encoder's preprocessing.
        encoder: The encoder, on the device where it shall run.
        out: Folder of the artifact, of kind ``features``.
        batch_size: Images in one forward pass.

    Raises:
        ArtifactError: ``out`` was made from something else.
    """
    names = list(pixels.ids)
    config = {
        "what": "patch mean",
        "encoder": encoder.base_fingerprint,
        "preprocess": encoder.preprocess.fingerprint,
        "ids": fingerprint(names),
    }
    draft = begin(out, "features", config, {"images": images})
    if draft.complete is not None:
        return draft.complete

    @torch.no_grad()
    def embed(batch: object) -> npt.NDArray[Any]:
        ready = encoder.preprocess.normalise(cast("Tensor", batch).to(encoder.device))
        means = encoder.trunk_and_patches(ready, Route.FROZEN)[1]
        return means.float().cpu().numpy()

    fill_rows(
        feature_file(out, len(names), encoder.width, "float32"),
        batch_size,
        lambda rows: pixels.array[rows.start : rows.stop],
        embed,
        label="features (patches)",
        unit="images",
    )
    write_jsonl(draft.path(IDS), names)
    return draft.finish({"images": len(names), "rows": len(names)})
