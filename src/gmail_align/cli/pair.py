"""``gmail-align pair``: real and generated images of the same caption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Out, Shared, command


@command
def pair(
    shared: Shared,
    captions: Annotated[Path, typer.Option(metavar="DIR", help="Captions of the real images.")],
    real: Annotated[Path, typer.Option(metavar="DIR", help="The real images.")],
    generated: Annotated[
        Path, typer.Option(metavar="DIR", help="The images generated from the captions.")
    ],
    out: Out,
) -> None:
    """Pair each caption's real image with the images generated from it."""
    from gmail_align.data.pairs import make_pairs

    shared.refuse_configuration()
    inputs = (load(captions, "captions"), load(real, "images"), load(generated, "images"))
    if shared.dry_run:
        shared.show_plan("pair", out, captions=captions, real=real, generated=generated)
        return
    shared.show_artifact(make_pairs(*inputs, out))
