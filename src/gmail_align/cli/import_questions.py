"""``gmail-align import scienceqa`` and ``mmmu``: questions about images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.cli.import_shared import (
    Convert,
    Images,
    ImportOut,
    ImportProtocol,
    Quarantine,
    Subset,
    bring_in,
)
from gmail_align.cli.shared import Shared, command


@command
def scienceqa(
    shared: Shared,
    source: Annotated[
        Path, typer.Option(metavar="PLACE", help="problems.json, its folder, or Parquet.")
    ],
    out: ImportOut,
    images: Images = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    with_image: Annotated[
        bool, typer.Option("--with-image", help="Keep only questions that have an image.")
    ] = False,
    protocol: ImportProtocol = None,
    subset: Subset = False,
    convert: Convert = True,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import ScienceQA's questions, and their images where they are."""
    from gmail_align.importing import sources

    own = sources.protocol_split(protocol, ("scienceqa",))
    bring_in(
        shared,
        "scienceqa",
        out,
        lambda: sources.scienceqa(
            source, images or [], split=own or split, with_image=with_image or bool(own)
        ),
        source=source,
        images=images,
        split=own or split,
        with_image=with_image or bool(own),
        protocol=protocol,
        subset=subset,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )


@command
def mmmu(
    shared: Shared,
    source: Annotated[
        Path, typer.Option(metavar="PLACE", help="Folder of the subjects' Parquet, or .jsonl.")
    ],
    out: ImportOut,
    images: Images = None,
    split: Annotated[str, typer.Option(help="dev, validation or test.")] = "validation",
    protocol: ImportProtocol = None,
    subset: Subset = False,
    convert: Convert = True,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import MMMU's questions with their images."""
    from gmail_align.importing import sources

    own = sources.protocol_split(protocol, ("mmmu",))
    bring_in(
        shared,
        "mmmu",
        out,
        lambda: sources.mmmu(source, images or [], split=own or split),
        source=source,
        images=images,
        split=own or split,
        protocol=protocol,
        subset=subset,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )
