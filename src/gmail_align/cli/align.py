"""``gmail-align align``: an encoder for generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Out, Seed, Shared, command, model_of
from gmail_align.errors import ConfigError


@command
def align(
    shared: Shared,
    pairs: Annotated[Path, typer.Option(metavar="DIR", help="What pair made.")],
    real: Annotated[Path, typer.Option(metavar="DIR", help="The real images.")],
    generated: Annotated[Path, typer.Option(metavar="DIR", help="The generated images.")],
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder or hub id of a CLIP; tabletop is shipped.")
    ],
    out: Out,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Classes of the real images, from an import, for the guard's zero-shot accuracy.",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="gmail, eq1_only, lora_only, distilled, full, heads_only, separate or llava; "
            "--config and --set go on top."
        ),
    ] = "gmail",
    seed: Seed = 0,
) -> None:
    """Align generated images to the frozen features of the real images of their captions.

    Held-out pairs pick the step that is kept. Where no step helps, the encoder says so and is the
    plain CLIP.
    """
    from gmail_align.alignment.config import ALIGN_PRESETS, AlignConfig

    if preset not in ALIGN_PRESETS:
        raise ConfigError(f"{preset!r} is no preset; use one of {', '.join(ALIGN_PRESETS)}")
    config = shared.build(AlignConfig, ALIGN_PRESETS[preset])
    inputs = (load(pairs, "pairs"), load(real, "images"), load(generated, "images"))
    known = None if classes is None else load(classes, "classes")
    if shared.dry_run:
        count = inputs[0].counts["pairs"]
        shared.show_plan("align", out, pairs=count, base=base, seed=seed, config=config)
        return
    from gmail_align.alignment.run import Sources, align
    from gmail_align.training.distributed import ranks

    made = align(config, Sources(*inputs, known), model_of(base, "clip"), out, seed=seed)
    if ranks().first:
        shared.show_artifact(made)
