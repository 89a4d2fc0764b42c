"""``gmail-align plan``: what generating images will cost, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.errors import ConfigError


@command
def plan(
    shared: Shared,
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A shipped recipe, or a TOML file.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Plan sd2, sd_turbo, sdxl, sd3, flux or flux_schnell.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Folder of a diffusers pipeline; tabletop is shipped."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The preset's faster, lossy form.")] = False,
    captions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The captions, which are counted.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many images.")] = None,
    card: Annotated[
        str, typer.Option(help="h200, h100, a100, l40s, l4, v100, t4, or TFLOP/s as a number.")
    ] = "h200",
    share: Annotated[
        float | None, typer.Option(help="Share of the card's limit that you expect, 0 to 1.")
    ] = None,
) -> None:
    """Count an image's operations; print images/s, GPU-days and disk. Nothing is generated.

    Name a recipe, or a --preset or --model with --images or --captions. --config and --set are
    those of the recipe, or of synthesize.
    """
    from gmail_align.synthesis.config import SynthesisConfig

    folder: Path | None
    if recipe is not None:
        config, folder, count = _of_recipe(shared, recipe)
    else:
        config = shared.build(SynthesisConfig, _settings(preset, fast, model))
        folder, count = _folder(config.model, preset), 0
    if captions is not None or images is not None or not count:
        count = _count(captions, images, config.images_per_caption)
    from gmail_align.synthesis.architectures import ARCHITECTURES, read_architecture
    from gmail_align.synthesis.cost import USUAL_SHARE, count_cost, make_plan

    shape = read_architecture(folder) if folder is not None else ARCHITECTURES[str(preset)]
    cost = count_cost(shape, config)
    made = make_plan(cost, config, count, card=card, share=USUAL_SHARE if share is None else share)
    details = {
        "denoiser_gflop": cost.denoiser / 1e9,
        "passes": cost.passes,
        "decoder_gflop": cost.decoder / 1e9,
        "height": cost.height,
        "width": cost.width,
    }
    shared.show({**made.to_dict(), **details}, "\n".join(_lines(made, details)))


def _of_recipe(shared: Shared, name: str) -> tuple[Any, Path, int]:
    """Return the recipe's synthesis, its generator's folder and how many images it makes."""
    from gmail_align.recipe import read_recipe

    found = read_recipe(name, [*shared.config_overrides(), *(shared.overrides or [])])
    world = getattr(found, "world", None)
    count = 0
    if world is not None and found.kind == "tabletop":
        captions = (world.train_images + world.validation_images) * world.captions_per_image
        count = captions * found.synthesis.images_per_caption
    return found.synthesis, model_of(found.synthesis.model, "diffusion"), count


def _settings(preset: str | None, fast: bool, model: str | None) -> dict[str, Any]:
    from gmail_align.synthesis.presets import preset_settings

    if preset is None and (model is None or fast):
        raise ConfigError("nothing is named to plan: give a recipe, --preset sd2, or --model DIR")
    settings = {} if preset is None else preset_settings(preset, fast=fast)
    return {**settings, "model": preset if model is None else str(model_of(model, "diffusion"))}


def _folder(model: str, preset: str | None) -> Path | None:
    """Return the generator's folder; None when only a preset is named."""
    if model == preset:
        return None
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: give a pipeline's folder, or a --preset")
    return folder


def _count(captions: Path | None, images: int | None, each: int) -> int:
    from gmail_align.artifacts import load

    if images is not None:
        return images
    if captions is None:
        raise ConfigError("how many images is not said: use --images N or --captions DIR")
    return load(captions, "captions").counts["captions"] * each


def _lines(made: Any, details: dict[str, Any]) -> list[str]:
    size = f"{details['height']} x {details['width']} pixels"
    return [
        f"{made.images:,} images of {size}",
        f"  operations    {made.tflop_per_image:.3g} TFLOP an image: {details['passes']} passes of "
        f"{details['denoiser_gflop']:,.4g} GFLOP, decoder {details['decoder_gflop']:,.4g} GFLOP",
        f"  {made.card:13} {made.card_tflops:g} TFLOP/s: at most "
        f"{made.images_per_second_limit:,.3g} images/s, {made.gpu_days_limit:,.3g} GPU-days",
        f"  expected      {made.share:.0%} of that: {made.images_per_second:,.3g} images/s, "
        f"{made.gpu_days:,.3g} GPU-days",
        f"  disk          about {made.disk_gb:,.3g} GB",
    ]
