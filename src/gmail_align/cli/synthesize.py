"""``gmail-align synthesize``: captions become generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Out, Shared, command, model_of


@command
def synthesize(
    shared: Shared,
    captions: Annotated[Path, typer.Option(metavar="DIR", help="The captions.")],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Folder or hub id of a diffusers pipeline; tabletop is shipped."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
) -> None:
    """Generate images from captions, shard by shard; a stopped run goes on where it was."""
    from gmail_align.synthesis.config import SynthesisConfig

    folder = None if model is None else str(model_of(model, "diffusion"))
    config = shared.build(SynthesisConfig, model=folder, seed=seed)
    source = load(captions, "captions")
    if shared.dry_run:
        images = source.counts["captions"] * config.images_per_caption
        shared.show_plan("synthesize", out, captions=captions, images=images, config=config)
        return
    from gmail_align.synthesis.run import synthesize

    shared.show_artifact(synthesize(config, source, out))
