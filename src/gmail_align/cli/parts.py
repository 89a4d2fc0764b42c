"""What commands share whose shards may be made by parts, such as the tasks of a SLURM array."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import Artifact
from gmail_align.cli.shared import Shared
from gmail_align.engine import Part

ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard-of",
        metavar="I/N",
        help="Make only the I-th of N parts of the shards, or slurm inside a job array.",
    ),
]


def show_part(
    shared: Shared, made: Artifact | None, part: Part | None, out: Path, what: str
) -> None:
    """Print the artifact, or that this part of it is done."""
    if made is not None:
        shared.show_artifact(made)
    elif part is not None:
        words = f"{out}: part {part} is done; the {what} are complete when all {part.of} parts are"
        shared.show({"folder": str(out), "part": str(part), "complete": False}, words)
