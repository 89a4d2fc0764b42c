"""``gmail-align predict captions``: a captioner's caption of every image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.captioning.config import PredictConfig
from gmail_align.cli.options import Out
from gmail_align.cli.shared import Shared, command


@command
def captions(
    shared: Shared,
    captioner: Annotated[
        Path, typer.Option(metavar="DIR", help="What train clipcap or train ifcap made.")
    ],
    features: Annotated[Path, typer.Option(metavar="DIR", help="Image features.")],
    out: Out,
    config: PredictConfig,
    retrieval: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Features by which an IFCap looks captions up, if of another encoder.",
        ),
    ] = None,
) -> None:
    """Predict one caption for every image of a feature store."""
    model, source = load(captioner, "captioner"), load(features, "features")
    keys = None if retrieval is None else load(retrieval, "features")
    if shared.dry_run:
        shared.show_plan("predict captions", out, config, captioner=captioner, features=features)
        return
    from gmail_align.captioning.predict import predict_captions

    shared.show_artifact(predict_captions(model, source, out, config, retrieval=keys))
