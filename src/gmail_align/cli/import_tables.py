"""``gmail-align import webdataset`` and ``parquet``: sets in shards and tables of any origin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.cli.import_shared import Convert, Images, ImportOut, Quarantine, bring_in
from gmail_align.cli.shared import Shared, command


@command
def webdataset(
    shared: Shared,
    source: Annotated[
        list[Path],
        typer.Option(metavar="PLACE", help="Shards, or folders of them; may be repeated."),
    ],
    out: ImportOut,
    caption: Annotated[
        str, typer.Option(help="Field of .json that holds the caption where there is no .txt.")
    ] = "caption",
    shard_keys: Annotated[
        bool, typer.Option("--shard-keys", help="Keys begin again in every shard.")
    ] = False,
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import WebDataset shards; only images, texts and json are read, nothing is unpickled."""
    from gmail_align.importing import sources

    bring_in(
        shared,
        "webdataset",
        out,
        lambda: sources.webdataset(source, caption=caption, shard_keys=shard_keys),
        source=source,
        caption=caption,
        shard_keys=shard_keys,
        convert=convert,
        limit_quarantine=limit_quarantine,
    )


@command
def parquet(
    shared: Shared,
    source: Annotated[
        list[Path],
        typer.Option(metavar="PLACE", help="Tables, or folders of them; may be repeated."),
    ],
    out: ImportOut,
    images: Images = None,
    image_column: Annotated[
        str, typer.Option(help="Column of image bytes (Parquet) or file names.")
    ] = "image",
    caption_column: Annotated[
        str, typer.Option(help="Column of captions: a text, or a list of them.")
    ] = "caption",
    id_column: Annotated[str | None, typer.Option(help="Column of image ids.")] = None,
    convert: Convert = False,
    limit_quarantine: Quarantine = 0.01,
) -> None:
    """Import tables with named columns: .parquet, .jsonl, .csv or .tsv."""
    from gmail_align.importing import sources
    from gmail_align.importing.formats.tables import Columns

    columns = Columns(image_column, caption_column, id_column)
    bring_in(
        shared,
        "parquet",
        out,
        lambda: sources.table(source, columns, images or []),
        source=source,
        images=images,
        columns=[image_column, caption_column, id_column],
        convert=convert,
        limit_quarantine=limit_quarantine,
    )
