"""``gmail-align choose``: some of the captions, or of the pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Out, Shared, command
from gmail_align.errors import UserError


@command
def choose(
    shared: Shared,
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Captions, or pairs.")],
    out: Out,
    each: Annotated[
        int | None, typer.Option(min=1, help="Captions of an image, at most; all by default.")
    ] = None,
    images: Annotated[
        float | None,
        typer.Option(metavar="N", help="Real images: a number, or a share below 1."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Changes the choice.")] = 0,
) -> None:
    """Keep some captions of each image, or all captions or pairs of some images.

    A trial of a thousand images, one caption an image as the paper has it, or the pairs of the few
    real images that there are. An image is kept by a hash of the seed and its id, so a larger
    choice contains a smaller one.
    """
    from gmail_align.data.subsets import choose_captions, choose_pairs

    shared.refuse_configuration()
    found = load(source)
    if found.kind not in ("captions", "pairs"):
        raise UserError(f"{source} holds {found.kind}: choose among captions or pairs")
    if shared.dry_run:
        shared.show_plan("choose", out, source=source)
    elif found.kind == "captions":
        shared.show_artifact(choose_captions(found, each, out, images=images, seed=seed))
    elif each is not None or images is None:
        raise UserError(f"{source} holds pairs: choose real images among them with --images")
    else:
        shared.show_artifact(choose_pairs(found, images, out, seed=seed))
