"""``gmail-align demo``: the whole pipeline on the tabletop world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.cli.run import overrides, show_run
from gmail_align.cli.shared import Shared, command


@command
def demo(
    shared: Shared,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Working folder.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds to repeat it with.")] = 1,
) -> None:
    """Run every stage on the tabletop world, on a CPU and offline, and end with a report.

    Run again, it does only what is missing.
    """
    from gmail_align import pipeline
    from gmail_align.recipe import read_recipe

    if shared.dry_run:
        shared.show_plan("demo", out, seeds=seeds, recipe=read_recipe("demo", overrides(shared)))
        return
    show_run(shared, pipeline.demo(out, overrides=overrides(shared), seeds=seeds))
