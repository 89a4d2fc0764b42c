"""``gmail-align run``: the stages of a recipe, in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gmail_align.cli.shared import Shared, command


@command
def run(
    shared: Shared,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a TOML file.")
    ],
    work: Annotated[
        Path | None,
        typer.Option("--work", "--out", metavar="DIR", help="Working folder; runs/RECIPE."),
    ] = None,
) -> None:
    """Run the stages of a recipe, skipping what is complete, and end with a report.

    ``--config`` is a TOML file whose keys replace the recipe's.
    """
    from gmail_align import pipeline
    from gmail_align.recipe import read_recipe

    folder = work or Path("runs") / Path(recipe).stem
    if shared.dry_run:
        shared.show_plan("run", folder, recipe=read_recipe(recipe, overrides(shared)))
        return
    show_run(shared, pipeline.run(recipe, folder, overrides(shared)))


def overrides(shared: Shared) -> list[str]:
    """Return ``--config`` and then ``--set`` as overrides of a recipe."""
    return [*shared.config_overrides(), *(shared.overrides or [])]


def show_run(shared: Shared, result: Mapping[str, Any]) -> None:
    """Print what a run came to: its report's path, or everything under ``--json``."""
    shared.show(result, f"report: {result['report']}")
