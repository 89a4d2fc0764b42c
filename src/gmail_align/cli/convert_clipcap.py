"""``gmail-align convert-clipcap``: ClipCap's released weights as a captioner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.cli.shared import Out, Shared, command


@command
def convert_clipcap(
    shared: Shared,
    weights: Annotated[Path, typer.Argument(metavar="FILE", help="ClipCap's .pt file.")],
    gpt2: Annotated[Path, typer.Option(metavar="DIR", help="GPT-2's configuration and tokenizer.")],
    out: Out,
    normalise: Annotated[
        bool | None,
        typer.Option(
            "--normalise/--raw",
            help="What features it reads; by default raw for the MLP, unit for the transformer.",
        ),
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option(help="Bring features to this length, for aligned ones before the MLP."),
    ] = None,
) -> None:
    """Turn ClipCap's released weights into a captioner; nothing in the file is run."""
    shared.refuse_configuration()
    if shared.dry_run:
        shared.show_plan("convert-clipcap", out, weights=weights, gpt2=gpt2)
        return
    from gmail_align.captioning.clipcap.convert import convert_clipcap as convert

    shared.show_artifact(convert(weights, gpt2, out, normalise=normalise, norm=norm))
