"""``gmail-align predict captions``: a captioner's caption of every image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Device, Out, Shared, command


@command
def captions(
    shared: Shared,
    captioner: Annotated[Path, typer.Option(metavar="DIR", help="What train clipcap made.")],
    features: Annotated[Path, typer.Option(metavar="DIR", help="Image features.")],
    out: Out,
    beam: Annotated[
        int | None, typer.Option(min=1, help="Beams; the captioner's own by default; 1 is greedy.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images predicted together.")] = 128,
    device: Device = "auto",
) -> None:
    """Predict one caption for every image of a feature store."""
    shared.refuse_configuration()
    model, source = load(captioner, "captioner"), load(features, "features")
    if shared.dry_run:
        shared.show_plan("predict captions", out, captioner=captioner, features=features)
        return
    from gmail_align.captioning.run import predict_captions

    shared.show_artifact(
        predict_captions(model, source, out, beam=beam, batch_size=batch_size, device=device)
    )
