"""``gmail-align track``: show a training in TensorBoard, Weights & Biases or trackio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from gmail_align.cli.shared import Shared, command
from gmail_align.errors import ConfigError

_TRACKERS = ("tensorboard", "wandb", "trackio")


@command
def track(
    shared: Shared,
    run: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that a training writes to, or wrote.")
    ],
    to: Annotated[str, typer.Option(help="tensorboard, wandb or trackio.")] = "tensorboard",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of what the tracker keeps here.")
    ] = Path("tracking"),
    name: Annotated[
        str | None, typer.Option(help="Name of the run there; the folder's when left out.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the training is finished.")
    ] = False,
) -> None:
    """Send the events of a training to a tracker; the training need not know of it.

    Every training keeps events.jsonl in its folder: losses of each step, figures of the guard.
    wandb sends them to its server unless WANDB_MODE=offline is set.
    """
    from gmail_align.training.trackers import Tracker, publish

    shared.refuse_configuration()
    if to not in _TRACKERS:
        raise ConfigError(f"{to!r} is no tracker; use one of {', '.join(_TRACKERS)}")
    called = name or run.resolve().name
    if shared.dry_run:
        shared.show_plan("track", out, run=run, to=to, name=called)
        return
    count = publish(run, cast("Tracker", to), out, name=called, follow=follow)
    shared.show({"events": count, "to": to, "name": called}, f"{count} events sent to {to}")
