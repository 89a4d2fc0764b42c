"""``gmail-align convert``: weights from elsewhere in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.cli.shared import Out, Shared, command
from gmail_align.convert.config import ConvertConfig


@command
def convert(
    shared: Shared,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Weights of OpenAI, open_clip, Long-CLIP or SynCLR (.pt, .safetensors); or a CLIP "
            "folder to stretch.",
        ),
    ],
    out: Out,
    activation: Annotated[
        str | None, typer.Option(help="quick_gelu or gelu, where the weights do not tell.")
    ] = None,
    stretch: Annotated[
        int | None, typer.Option(help="Stretch the text positions, as Long-CLIP does (248).")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Tokenizer folder, or OpenAI's bpe_simple_vocab_16e6.txt.gz."
        ),
    ] = None,
) -> None:
    """Write weights as a folder that align takes as its base; their features are compared.

    Nothing is unpickled. A file that could only be read by running what is in it is refused.
    """
    config = shared.build(ConvertConfig, activation=activation, stretch=stretch)
    if shared.dry_run:
        shared.show_plan("convert", out, source=source, tokenizer=tokenizer, config=config)
        return
    from gmail_align.convert.convert import convert

    shared.show_artifact(convert(source, out, config, tokenizer=tokenizer))
