"""``gmail-align tabletop train``: the shipped models, from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gmail_align.cli.shared import Out, Seed, Shared, command


@command
def train(
    shared: Shared,
    out: Out,
    work: Annotated[
        Path, typer.Option(metavar="DIR", help="Corpus and checkpoints; kept, to go on from.")
    ] = Path("runs/tabletop"),
    only: Annotated[
        Literal["clip", "gpt2", "diffusion", "long_clip", "siglip"] | None,
        typer.Option(help="Train just this one."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train the shipped models in the tabletop world from scratch: hours on a CPU."""
    shared.refuse_configuration()
    if shared.dry_run:
        shared.show_plan("tabletop train", out, work=work, only=only or "everything", seed=seed)
        return
    from gmail_align.tabletop.training.train import train_models

    records = train_models(work, out, seed=seed, only=only)
    shared.show(records, "\n".join(f"{out / name}" for name in records))
