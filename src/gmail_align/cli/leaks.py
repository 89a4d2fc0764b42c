"""``gmail-align leaks``: training images that an evaluation also has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Shared, command


@command
def leaks(
    shared: Shared,
    train: Annotated[Path, typer.Option(metavar="DIR", help="Images or captions to train on.")],
    evaluation: Annotated[
        list[Path],
        typer.Option(metavar="DIR", help="Images or captions to evaluate on; may be repeated."),
    ],
    drop: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the training set again here, without leaks."),
    ] = None,
    distance: Annotated[
        int, typer.Option(min=0, max=64, help="Most bits of 128 in which two copies differ.")
    ] = 10,
    ids_only: Annotated[
        bool, typer.Option("--ids-only", help="Compare ids, and leave the images unread.")
    ] = False,
) -> None:
    """Check training images against evaluations, by photo id and by perceptual hash.

    Exits with 2 when something leaks and --drop is not given.
    """
    shared.refuse_configuration()
    own, others = load(train), [load(path) for path in evaluation]
    if shared.dry_run:
        shared.show_plan("check leaks", drop or train, train=train, evaluation=evaluation)
        return
    from gmail_align.data.leaks import drop_leaks, find_leaks, refuse_leaks

    found = find_leaks(own, others, distance=distance, hashed=not ids_only)
    value = found.to_dict()
    how = "ids and looks" if found.hashed else "ids alone"
    lines = (
        f"{value['leaking']} of {found.train} training images are among {found.evaluation} of "
        f"evaluation (by {how}): {value['by_id']} by id, {value['by_looks']} by looks"
    )
    if drop is None:
        shared.show(value, lines)
        refuse_leaks(found, own)
        return
    made = drop_leaks(own, found, drop)
    value["dropped_into"] = {"folder": str(made.folder), "counts": made.counts}
    shared.show(value, f"{lines}\n{made.folder}: {made.kind}, without them")
