"""``gmail-align evaluate retrieval``: image-text retrieval, of artifacts or of plain files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gmail_align.artifacts import load
from gmail_align.cli.on_files import OutOrNot, Subset, one_door, refuse_other, show_answer
from gmail_align.cli.options import Protocol, Seed
from gmail_align.cli.shared import Shared, command


@command
def retrieval(
    shared: Shared,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Image features, an artifact.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Features of the captions, of the same encoder."),
    ] = None,
    captions: Annotated[Path | None, typer.Option(metavar="DIR", help="The captions.")] = None,
    out: OutOrNot = None,
    image_features: Annotated[
        Path | None, typer.Option(metavar="I.npy", help="Or plain files: floats (images, dim).")
    ] = None,
    text_features: Annotated[
        Path | None, typer.Option(metavar="T.npy", help="Floats (texts, dim).")
    ] = None,
    text_image: Annotated[
        Path | None,
        typer.Option(metavar="T2I.npy", help="Integers: the row in I of each text's image."),
    ] = None,
    protocol: Protocol = "retrieval",
    subset: Subset = False,
    compat: Annotated[
        str | None,
        typer.Option(help="Score as another evaluator does: clip_benchmark or long_clip."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Score retrieval of captions by images and of images by captions.

    Give features and captions as artifacts (--images, --texts, --captions, --out), or as three
    .npy files (--image-features, --text-features, --text-image).
    """
    shared.refuse_configuration()
    by_file, paths = one_door(
        {"--images": images, "--texts": texts, "--captions": captions},
        {
            "--image-features": image_features,
            "--text-features": text_features,
            "--text-image": text_image,
        },
        out,
    )
    if compat is not None:
        from gmail_align.metrics.compat import parse_compat

        parse_compat(compat)
    how = {"protocol": protocol, "subset": subset, "compat": compat, "seed": seed}
    score = _of_files if by_file else _of_artifacts
    score(shared, paths, out, how)


def _of_files(
    shared: Shared, paths: Sequence[Path], out: Path | None, how: Mapping[str, Any]
) -> None:
    from gmail_align.evaluation.files import retrieval_of_files

    if shared.dry_run:
        names = [str(path) for path in paths]
        shared.show_plan("evaluate retrieval", out or Path("standard output"), files=names, **how)
        return
    refuse_other(out)
    show_answer(shared, retrieval_of_files(*paths, **how, keep=out), out)


def _of_artifacts(
    shared: Shared, paths: Sequence[Path], out: Path | None, how: Mapping[str, Any]
) -> None:
    from gmail_align.data.captions import read_captions

    assert out is not None
    images, texts = (load(path, "features") for path in paths[:2])
    rows = [(row.caption_id, row.image_id) for row in read_captions(load(paths[2], "captions"))]
    if shared.dry_run:
        shared.show_plan("evaluate retrieval", out, images=paths[0], captions=len(rows), **how)
        return
    from gmail_align.evaluation.run import evaluate_retrieval

    shared.show_artifact(evaluate_retrieval(images, texts, rows, out, **how))
