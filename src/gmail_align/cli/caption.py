"""``gmail-align caption``: captions of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.captioning.config import PredictConfig
from gmail_align.cli.options import EncoderName
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.encoders.route import Route


@command
def caption(
    shared: Shared,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    captioner: Annotated[
        Path, typer.Option(metavar="DIR", help="What train clipcap or train ifcap made.")
    ],
    encoder: EncoderName,
    config: PredictConfig,
    route: Annotated[
        Route, typer.Option(help="Which of the encoder's weights the images go through.")
    ] = Route.FROZEN,
    retrieval_encoder: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What an IFCap looks captions up with, if another."),
    ] = None,
) -> None:
    """Caption image files with a trained captioner and the encoder that it was trained on.

    Prints a line for each: the file, a tab, its caption. Nothing is kept.
    """
    artifact = load(captioner, "captioner")
    if shared.dry_run:
        shared.show_plan("caption", captioner, config, images=len(images), route=route)
        return
    from gmail_align.captioning.predict import caption_files
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.runtime import resolve_device

    models = [
        GmailEncoder.from_pretrained(model_of(name, "clip")).to(resolve_device(config.device))
        for name in (encoder, retrieval_encoder)
        if name is not None
    ]
    looks = models[1] if len(models) > 1 else None
    rows = caption_files(artifact, models[0], images, route, config, retrieval=looks)
    lines = "\n".join(f"{row['file']}\t{row['text']}" for row in rows)
    shared.show({"captions": rows}, lines)
