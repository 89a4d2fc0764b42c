"""``gmail-align extract``: features of images or captions, computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gmail_align.artifacts import load
from gmail_align.cli.parts import ShardOf, show_part
from gmail_align.cli.shared import Device, EncoderName, Out, Shared, command, model_of
from gmail_align.encoders.route import Route
from gmail_align.engine import Engine, Part
from gmail_align.errors import ConfigError


@command
def extract(
    shared: Shared,
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Images, captions or pairs (for their captions).")
    ],
    encoder: EncoderName,
    out: Out,
    route: Annotated[
        Route | None, typer.Option(help="Which weights images go through; required for images.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one forward pass.")] = 64,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="How features are stored.")
    ] = "float32",
    device: Device = "auto",
    engine: Annotated[
        str,
        typer.Option("--engine", metavar="WHERE", help="local, ray, or ray://HOST of a cluster."),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; one for each visible GPU when not given."),
    ] = None,
    shard_of: ShardOf = None,
) -> None:
    """Compute features of images through one route, or of captions, and keep them.

    Parts of a SLURM array (--shard-of slurm) share --out; the one that ends last, or the same
    command without --shard-of, finishes it.
    """
    shared.refuse_configuration()
    artifact = load(source)
    is_images = artifact.kind == "images"
    if is_images and route is None:
        raise ConfigError(f"{source} holds images: name a --route ({', '.join(Route)})")
    if not is_images and route is not None:
        raise ConfigError(f"{source} holds {artifact.kind}, which have no --route: leave it out")
    if shared.dry_run:
        shared.show_plan("extract", out, source=source, encoder=encoder, route=route or "text")
        return
    where = Engine(engine, workers)
    part = None if shard_of is None else Part.parse(shard_of)
    folder = model_of(encoder, "clip")
    if part is not None or _several(where, device):
        from gmail_align.features.sharded import Extraction, extract_on

        how = Extraction(folder, route, batch_size, dtype, device)
        show_part(shared, extract_on(where, artifact, how, out, part), part, out, "features")
        return
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.features.run import extract_images, extract_texts
    from gmail_align.runtime import resolve_device

    model = GmailEncoder.from_pretrained(folder).to(resolve_device(device))
    shared.show_artifact(
        extract_texts(artifact, model, out, batch_size=batch_size, dtype=dtype)
        if route is None
        else extract_images(artifact, model, route, out, batch_size=batch_size, dtype=dtype)
    )


def _several(engine: Engine, device: str) -> bool:
    """Tell whether work goes to other processes than this one."""
    if engine.on_ray or (engine.workers or 1) > 1:
        return True
    return engine.workers is None and device == "auto" and engine.gpus() > 1
