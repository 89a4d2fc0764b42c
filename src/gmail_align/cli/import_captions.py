"""``gmail-align import flickr30k``, ``cc``, ``sharegpt4v`` and ``urban1k``: captioned sets."""

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
    Sources,
    Subset,
    bring_in,
)
from gmail_align.cli.shared import Shared, command


@command
def flickr30k(
    shared: Shared,
    tokens: Annotated[
        Path, typer.Option(metavar="FILE", help="results_20130124.token, or Flickr8k's like it.")
    ],
    out: ImportOut,
    images: Images = None,
    protocol: ImportProtocol = None,
    subset: Subset = False,
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import Flickr30k's token file with all its images (flickr30k_31k is that protocol)."""
    from gmail_align.importing import sources

    sources.protocol_split(protocol, ("flickr30k",))
    bring_in(
        shared,
        "flickr30k",
        out,
        lambda: sources.flickr30k(tokens, images or []),
        tokens=tokens,
        images=images,
        protocol=protocol,
        subset=subset,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )


@command
def cc(
    shared: Shared,
    source: Annotated[
        Path,
        typer.Option(metavar="PLACE", help="TSV of captions and urls, or img2dataset's shards."),
    ],
    out: ImportOut,
    images: Images = None,
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import CC3M or CC12M; a TSV's images are files named by their line, from 0."""
    from gmail_align.importing import sources

    bring_in(
        shared,
        "cc",
        out,
        lambda: sources.conceptual(source, images or []),
        source=source,
        images=images,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )


@command
def sharegpt4v(
    shared: Shared,
    annotations: Annotated[
        Path, typer.Option(metavar="FILE", help="share-captioner_*.json of ShareGPT4V.")
    ],
    out: ImportOut,
    images: Images = None,
    split: Annotated[
        str | None, typer.Option(help="test (the first 1,000), train (the others) or all.")
    ] = None,
    protocol: ImportProtocol = None,
    subset: Subset = False,
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import ShareGPT4V's long captions."""
    from gmail_align.importing import sources

    name = split or sources.protocol_split(protocol, ("sharegpt4v",)) or "all"
    bring_in(
        shared,
        "sharegpt4v",
        out,
        lambda: sources.sharegpt4v(annotations, images or [], split=name),
        annotations=annotations,
        images=images,
        split=name,
        protocol=protocol,
        subset=subset,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )


@command
def urban1k(
    shared: Shared,
    source: Sources,
    out: ImportOut,
    protocol: ImportProtocol = None,
    subset: Subset = False,
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import Urban-1k, or any images with .txt captions of the same names beside them."""
    from gmail_align.importing import sources

    sources.protocol_split(protocol, ("urban1k",))
    bring_in(
        shared,
        "urban1k",
        out,
        lambda: sources.urban1k(source),
        source=source,
        protocol=protocol,
        subset=subset,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )
