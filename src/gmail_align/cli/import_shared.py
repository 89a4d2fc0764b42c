"""What the import commands share: options, and writing what a format found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmail_align.cli.shared import Shared

if TYPE_CHECKING:
    from gmail_align.importing.run import Source

Images = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PLACE",
        help="Folder, zip or tar of the images, read in place; may be repeated. Without it "
        "captions alone are imported.",
    ),
]
Sources = Annotated[
    list[Path],
    typer.Option(
        "--source", metavar="PLACE", help="Folder, zip or tar, read in place; may be repeated."
    ),
]
ImportOut = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Gets captions/, images/ and the like.")
]
Quarantine = Annotated[
    float,
    typer.Option(
        "--limit-quarantine", min=0, max=1, help="Largest share that may be broken and left out."
    ),
]
Convert = Annotated[
    bool,
    typer.Option(
        "--convert/--no-convert",
        help="Take CMYK, 16-bit, animated and wrongly named images as they convert.",
    ),
]
ImportProtocol = Annotated[
    str | None,
    typer.Option(
        "--protocol", metavar="NAME", help="Keep what this evaluation uses, and check its counts."
    ),
]
Subset = Annotated[
    bool, typer.Option("--subset", help="Less than the protocol has; its name then says so.")
]
Template = Annotated[
    str, typer.Option("--template", help="Caption of an image of a class; {} is the class.")
]


def bring_in(
    shared: Shared, what: str, out: Path, read: Callable[[], Source], **details: Any
) -> None:
    """Read a source and write it; with ``--dry-run`` only say what would be done.

    ``details`` are the command's own options, all that the result depends on; those of writing are
    taken out of them.
    """
    shared.refuse_configuration()
    asked_for = dict(details)
    names = ("limit_quarantine", "convert", "protocol", "subset")
    options = {name: details.pop(name) for name in names if name in details}
    if shared.dry_run:
        given = {name: value for name, value in details.items() if value is not None}
        shared.show_plan(f"import {what}", out, **given)
        return
    from gmail_align.importing.receipt import Asked

    asked = Asked.of(what, out, asked_for)
    made = asked.made()
    if made is None:
        from gmail_align.importing.run import Options, write_import

        made = write_import(read(), out, Options(**options))
        asked.note(made)
    order = ("captions", "images", "classes", "questions")
    shared.show_artifact(*(made[name] for name in order if name in made))
