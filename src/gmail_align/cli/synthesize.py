"""``gmail-align synthesize``: captions become generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gmail_align.artifacts import load
from gmail_align.cli.parts import ShardOf, show_part
from gmail_align.cli.shared import Out, Shared, command, model_of
from gmail_align.engine import Engine, Part
from gmail_align.errors import ConfigError

Place = Annotated[
    str, typer.Option("--engine", metavar="WHERE", help="local, ray, or ray://HOST of a cluster.")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Processes; one for each visible GPU when not given."),
]


@command
def synthesize(
    shared: Shared,
    captions: Annotated[Path, typer.Option(metavar="DIR", help="The captions.")],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Folder or hub id of a diffusers pipeline; tabletop is shipped."
        ),
    ] = None,
    model_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a diffusers pipeline.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Settings of sd2, sd_turbo, sdxl, sd3, flux or flux_schnell."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="The preset's faster, lossy form: other images.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    engine: Place = "local",
    workers: Workers = None,
    shard_of: ShardOf = None,
) -> None:
    """Generate images from captions, shard by shard; a stopped run goes on where it was.

    Each visible GPU gets a process. Parts of a SLURM array (--shard-of slurm) share --out; the one
    that ends last, or the same command without --shard-of, finishes it. `gmail-align plan` tells
    beforehand what a run costs.
    """
    from gmail_align.synthesis.config import SynthesisConfig

    settings = _settings(shared, preset, fast, _model(model, model_path))
    config = shared.build(SynthesisConfig, settings, seed=seed)
    source = load(captions, "captions")
    where = Engine(engine, workers)
    part = None if shard_of is None else Part.parse(shard_of)
    if shared.dry_run:
        images = source.counts["captions"] * config.images_per_caption
        shared.show_plan("synthesize", out, captions=captions, images=images, config=config)
        return
    from gmail_align.synthesis.run import synthesize, synthesize_part

    if part is None:
        shared.show_artifact(synthesize(config, source, out, where))
        return
    show_part(shared, synthesize_part(config, source, out, part, where), part, out, "images")


def _model(model: str | None, folder: Path | None) -> str | None:
    """Return the generator that was named, by one option or the other."""
    if model is not None and folder is not None:
        raise ConfigError("--model and --model-path name one generator each: leave out one of them")
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            f"there is no folder {folder}: give the folder that holds model_index.json"
        )
    if folder is not None:
        return str(folder)
    return None if model is None else str(model_of(model, "diffusion"))


def _settings(shared: Shared, preset: str | None, fast: bool, model: str | None) -> dict[str, Any]:
    """Return what stands below --config and --set: the preset and the generator."""
    from gmail_align.synthesis.presets import preset_settings, refuse_without_model

    if preset is None and fast:
        raise ConfigError("--fast is a form of a preset: name one with --preset")
    named = [*shared.config_overrides(), *(shared.overrides or [])]
    if model is None and not any(text.startswith("model=") for text in named):
        if preset is not None:
            preset_settings(preset)
            refuse_without_model(preset)
        raise ConfigError(
            "no generator is named: use --model tabletop (shipped), --model-path FOLDER, or "
            "--model OWNER/NAME of a diffusers pipeline on the Hugging Face hub"
        )
    settings = {} if preset is None else preset_settings(preset, fast=fast)
    return settings if model is None else {**settings, "model": model}
