"""``gmail-align import coco``: COCO-style annotations and images become artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.cli.shared import Shared, command


@command
def coco(
    shared: Shared,
    annotations: Annotated[
        Path, typer.Option(metavar="FILE", help="COCO's captions_*.json, or one of its format.")
    ],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the images.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets captions/ and images/.")],
    split: Annotated[
        str | None, typer.Option(help="Name of the split; by default from the file's name.")
    ] = None,
    limit_quarantine: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of images that may be broken.")
    ] = 0.01,
) -> None:
    """Import COCO-style caption annotations and their images (COCO 2014, 2017 and look-alikes)."""
    shared.refuse_configuration()
    name = split or annotations.stem.removeprefix("captions_")
    if shared.dry_run:
        shared.show_plan("import coco", out, annotations=annotations, images=images, split=name)
        return
    from gmail_align.data.import_run import import_coco

    shared.show_artifact(
        *import_coco(annotations, images, out, split_name=name, limit_quarantine=limit_quarantine)
    )
