"""``gmail-align tabletop write``: scenes of the tabletop world on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gmail_align.cli.shared import Shared, command


@command
def write(
    shared: Shared,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; may hold splits.")],
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 1000,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split.")] = "train",
    start: Annotated[int, typer.Option(min=0, help="Seed of the first scene.")] = 0,
    size: Annotated[int, typer.Option(min=16, help="Pixels along a side.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
) -> None:
    """Draw scenes with captions and ground truth in COCO's format, for import coco."""
    shared.refuse_configuration()
    if shared.dry_run:
        shared.show_plan("tabletop write", out, split=split, images=count)
        return
    from gmail_align.tabletop.world import write_coco

    path = write_coco(out, split, count, start, size, workers)
    shared.show(
        {"annotations": str(path), "images": str(out / "images"), "count": count},
        f"{path}: captions of {count} images in {out / 'images'}",
    )
