"""``gmail-align import coco`` and ``karpathy``: COCO-style json and its images."""

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
def coco(
    shared: Shared,
    annotations: Annotated[
        Path, typer.Option(metavar="FILE", help="COCO's captions_*.json, or one of its format.")
    ],
    out: ImportOut,
    images: Images = None,
    split: Annotated[
        str | None, typer.Option(help="Name of the split; by default from the file's name.")
    ] = None,
    protocol: ImportProtocol = None,
    subset: Subset = False,
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import COCO-style caption annotations and their images (COCO 2014, 2017 and look-alikes)."""
    from gmail_align.importing import sources

    name = split or annotations.name.partition(".")[0].removeprefix("captions_")
    sources.protocol_split(protocol, ("coco",))
    bring_in(
        shared,
        "coco",
        out,
        lambda: sources.coco(annotations, images or [], split=name),
        annotations=annotations,
        images=images,
        split=name,
        protocol=protocol,
        subset=subset,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )


@command
def karpathy(
    shared: Shared,
    annotations: Annotated[
        Path, typer.Option(metavar="FILE", help="dataset_coco.json, _flickr30k or _flickr8k.")
    ],
    out: ImportOut,
    images: Images = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="train, restval, val or test; may be repeated; by default all."),
    ] = None,
    protocol: ImportProtocol = None,
    subset: Subset = False,
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import Karpathy's splits of COCO, Flickr30k or Flickr8k."""
    from gmail_align.importing import sources

    own = sources.protocol_split(protocol, ("coco", "flickr30k"))
    splits = split or ([own] if own else [])
    bring_in(
        shared,
        "karpathy",
        out,
        lambda: sources.karpathy(annotations, images or [], splits=splits),
        annotations=annotations,
        images=images,
        split=splits,
        protocol=protocol,
        subset=subset,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )
