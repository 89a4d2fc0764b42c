"""``gmail-align predict captions``: a captioner's caption of every image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Out, Shared, command

Method = Annotated[
    Literal["beam", "greedy", "nucleus"] | None,
    typer.Option(help="Beam search (the default), the likeliest token, or a draw."),
]
Beam = Annotated[
    int | None, typer.Option(min=1, help="Beams; the captioner's own by default; 1 is greedy.")
]
PredictSeed = Annotated[int | None, typer.Option("--seed", help="Seed of nucleus sampling.")]
AnyEncoder = Annotated[
    bool | None,
    typer.Option("--any-encoder", help="Read features of another encoder than it was trained on."),
]
PredictDevice = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


@command
def captions(
    shared: Shared,
    captioner: Annotated[
        Path, typer.Option(metavar="DIR", help="What train clipcap or train ifcap made.")
    ],
    features: Annotated[Path, typer.Option(metavar="DIR", help="Image features.")],
    out: Out,
    retrieval: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Features by which an IFCap looks captions up, if of another encoder.",
        ),
    ] = None,
    method: Method = None,
    beam: Beam = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images predicted together; 128 by default.")
    ] = None,
    seed: PredictSeed = None,
    any_encoder: AnyEncoder = None,
    device: PredictDevice = None,
) -> None:
    """Predict one caption for every image of a feature store."""
    from gmail_align.captioning.config import PredictConfig

    config = shared.build(
        PredictConfig,
        method=method,
        beam=beam,
        batch_size=batch_size,
        seed=seed,
        any_encoder=any_encoder,
        device=device,
    )
    model, source = load(captioner, "captioner"), load(features, "features")
    keys = None if retrieval is None else load(retrieval, "features")
    if shared.dry_run:
        shared.show_plan(
            "predict captions", out, captioner=captioner, features=features, config=config
        )
        return
    from gmail_align.captioning.predict import predict_captions

    shared.show_artifact(predict_captions(model, source, out, config, retrieval=keys))
