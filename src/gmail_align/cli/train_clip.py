"""``gmail-align train clip``: a CLIP from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.alignment.config import ScratchConfig
from gmail_align.artifacts import load
from gmail_align.cli.options import Out, Seed
from gmail_align.cli.shared import Shared, command, model_of


@command
def clip(
    shared: Shared,
    captions: Annotated[Path, typer.Option(metavar="DIR", help="Captions of the images.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="The images.")],
    base: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="A CLIP whose shape, tokenizer and preprocessing are taken, but no weight.",
        ),
    ],
    out: Out,
    config: ScratchConfig,
    seed: Seed = 0,
) -> None:
    """Train a CLIP from random weights on images and captions.

    What comes out is a plain Hugging Face CLIP, a --base for align.
    """
    inputs = (load(captions, "captions"), load(images, "images"))
    if shared.dry_run:
        count = inputs[0].counts["captions"]
        shared.show_plan("train", out, config, captions=count, base=base, seed=seed)
        return
    from gmail_align.alignment.scratch import train_clip
    from gmail_align.training.distributed import ranks

    made = train_clip(config, *inputs, model_of(base, "clip"), out, seed=seed)
    if ranks().first:
        shared.show_artifact(made)
