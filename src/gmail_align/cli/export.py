"""``gmail-align export``: an encoder for other people's code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Out, Shared, command, model_of
from gmail_align.export.config import ExportConfig


@command
def export(
    shared: Shared,
    encoder: Annotated[
        str, typer.Argument(metavar="ENCODER", help="What align made, or a plain CLIP.")
    ],
    out: Out,
    format: Annotated[
        str | None,
        typer.Option(help="hf, peft, open_clip, llava, sentence-transformers or onnx."),
    ] = None,
    route: Annotated[
        str | None, typer.Option(help="real (default), generated, real_head or frozen.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Images or pairs it was made of, for the model card; repeatable."
        ),
    ] = None,
    result: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A result for the model card; repeatable."),
    ] = None,
) -> None:
    """Write one route of an encoder so that it needs nothing of gmail-align.

    It is loaded by the library it is for, and its features are compared with the encoder's.
    """
    config = shared.build(ExportConfig, format=format, route=route)
    if shared.dry_run:
        shared.show_plan("export", out, encoder=encoder, config=config)
        return
    from gmail_align.export.run import export

    described = [load(folder) for folder in data or []]
    results = [load(folder, "result") for folder in result or []]
    folder = model_of(encoder, "clip")
    shared.show_artifact(export(config, folder, out, data=described, results=results))
