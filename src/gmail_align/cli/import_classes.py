"""``gmail-align import folder``, ``cifake`` and ``classification``: images with a class."""

from __future__ import annotations

from typing import Annotated

import typer

from gmail_align.cli.import_shared import (
    Convert,
    ImportOut,
    Quarantine,
    Sources,
    Subset,
    Template,
    bring_in,
)
from gmail_align.cli.shared import Shared, command
from gmail_align.errors import UserError


@command
def folder(
    shared: Shared,
    source: Sources,
    out: ImportOut,
    template: Template = "a photo of a {}.",
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import folders of images named by their class; each image's caption is the template."""
    from gmail_align.importing import sources

    bring_in(
        shared,
        "folder",
        out,
        lambda: sources.folder(source, template=template),
        source=source,
        template=template,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )


@command
def cifake(
    shared: Shared,
    source: Sources,
    out: ImportOut,
    real: Annotated[bool, typer.Option("--real", help="Import the real side.")] = False,
    generated: Annotated[
        bool, typer.Option("--generated", help="Import the generated side.")
    ] = False,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
    template: Template = "a photo of a {}.",
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import one side of CIFAKE; both sides' images get ids by which `pair` joins them."""
    from gmail_align.importing import sources

    if real == generated:
        raise UserError("CIFAKE has two sides: give --real or --generated, one at a time")
    bring_in(
        shared,
        "cifake",
        out,
        lambda: sources.cifake(source, generated=generated, split=split, template=template),
        source=source,
        side="generated" if generated else "real",
        split=split,
        template=template,
        limit_quarantine=limit_quarantine,
    )


@command
def classification(
    shared: Shared,
    name: Annotated[
        str,
        typer.Argument(
            metavar="SET",
            help="dtd, stanford_cars, sun397, food101, fgvc_aircraft, oxford_pets, caltech101 or "
            "imagenet.",
        ),
    ],
    source: Sources,
    out: ImportOut,
    split: Annotated[
        str | None, typer.Option(help="Split; by default the one that the set is scored on.")
    ] = None,
    subset: Subset = False,
    convert: Convert = True,
    template: Template = "a photo of a {}.",
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import a classification set in the layout of its authors, with OpenAI's prompts."""
    from gmail_align.data.classes import class_set
    from gmail_align.importing import sources

    class_set(name)
    own = sources.protocol_split(name, (name,))
    bring_in(
        shared,
        f"classification {name}",
        out,
        lambda: sources.classification(name, source, split=split, template=template),
        source=source,
        split=split or own,
        template=template,
        protocol=name if split in (None, own) else None,
        subset=subset,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )
