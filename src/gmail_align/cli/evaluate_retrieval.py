"""``gmail-align evaluate retrieval``: image-text retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Out, Protocol, Seed, Shared, command


@command
def retrieval(
    shared: Shared,
    images: Annotated[Path, typer.Option(metavar="DIR", help="Image features.")],
    texts: Annotated[
        Path, typer.Option(metavar="DIR", help="Features of the captions, of the same encoder.")
    ],
    captions: Annotated[Path, typer.Option(metavar="DIR", help="The captions.")],
    out: Out,
    protocol: Protocol = "retrieval",
    seed: Seed = 0,
) -> None:
    """Score retrieval of captions by images and of images by captions."""
    from gmail_align.data.captions import read_captions

    shared.refuse_configuration()
    seen, read = load(images, "features"), load(texts, "features")
    rows = [(row.caption_id, row.image_id) for row in read_captions(load(captions, "captions"))]
    if shared.dry_run:
        shared.show_plan("evaluate retrieval", out, images=images, captions=len(rows))
        return
    from gmail_align.evaluation.run import evaluate_retrieval

    shared.show_artifact(evaluate_retrieval(seen, read, rows, out, protocol=protocol, seed=seed))
