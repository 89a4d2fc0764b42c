"""``gmail-align run``, ``demo``, ``recipes``, ``plan`` and ``report``: whole runs of a recipe."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from gmail_align.artifacts import load, write_bytes
from gmail_align.cli.options import Overrides, Settings
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.errors import ConfigError, UserError
from gmail_align.synthesis.config import SynthesisConfig

RecipeName = Annotated[str, typer.Argument(metavar="NAME", help="A name that `list` prints.")]


@command
def run(
    shared: Shared,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a TOML file.")
    ],
    overrides: Overrides,
    work: Annotated[
        Path | None,
        typer.Option("--work", "--out", metavar="DIR", help="Work folder; runs/RECIPE."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="Where shards and rows run: local, ray or ray://HOST.")
    ] = "local",
) -> None:
    """Run the stages of a recipe, skip what is complete, and end with a report.

    Recipes in one work folder share every artifact that they have in common. ``--dry-run`` lists
    what each row uses. ``--config`` is a TOML file whose keys replace the recipe's.
    """
    from gmail_align import pipeline

    folder = work or Path("runs") / Path(recipe).stem
    if shared.dry_run:
        shared.show_plan("run", folder, rows=pipeline.index(recipe, overrides))
        return
    _show_run(shared, pipeline.run(recipe, folder, overrides, engine=engine))


@command
def demo(
    shared: Shared,
    overrides: Overrides,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Work folder.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds to repeat it with.")] = 1,
) -> None:
    """Run every stage on the tabletop world, on a CPU and offline, and end with a report.

    A second run does only what is missing.
    """
    from gmail_align import pipeline

    if shared.dry_run:
        shared.show_plan("demo", out, seeds=seeds, rows=pipeline.index("demo", overrides))
        return
    _show_run(shared, pipeline.demo(out, overrides=overrides, seeds=seeds))


def _show_run(shared: Shared, result: Mapping[str, Any]) -> None:
    """Print the path of a run's report, or the whole result under ``--json``."""
    shared.show(result, f"report: {result['report']}")


@command
def report(
    shared: Shared,
    work: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the report; DIR/report.")
    ] = None,
) -> None:
    """Write a finished run's report again: index.html, tables/ and figures/."""
    from gmail_align import pipeline

    if shared.dry_run:
        shared.show_plan("report", out or work / "report", work=work)
        return
    page = pipeline.report_again(work, out)
    shared.show({"report": str(page)}, f"report: {page}")


@command
def list_recipes(shared: Shared) -> None:
    """List the shipped recipes, each with the first line of its runbook."""
    titles = {name: _first_line(text) for name, text in _shipped_recipes().items()}
    width = max(map(len, titles), default=0)
    shared.show(
        {"recipes": titles}, "\n".join(f"{n:{width}}  {line}" for n, line in titles.items())
    )


@command
def show_recipe(shared: Shared, name: RecipeName) -> None:
    """Print a shipped recipe."""
    text = _recipe_text(name)
    shared.show({"name": name, "text": text}, text.rstrip("\n"))


@command
def copy_recipe(
    shared: Shared,
    name: RecipeName,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")],
) -> None:
    """Copy a shipped recipe to a file of your own, to change it."""
    text = _recipe_text(name)
    if path.is_dir():
        path = path / f"{name}.toml"
    if path.exists():
        raise UserError(f"{path} exists already: choose another name")
    if shared.dry_run:
        shared.show_plan("copy", path, recipe=name)
        return
    write_bytes(path, text.encode())
    shared.show({"path": str(path)}, f"{path}: change it, then gmail-align run {path}")


def _shipped_recipes() -> dict[str, str]:
    """Return the text of every shipped recipe by name."""
    recipes = sorted((files("gmail_align") / "recipes").iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in recipes
        if file.name.endswith(".toml")
    }


def _recipe_text(name: str) -> str:
    recipes = _shipped_recipes()
    if name in recipes:
        return recipes[name]
    close = difflib.get_close_matches(name, recipes, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(recipes)}"
    raise ConfigError(f"no recipe is named {name!r}; {hint}")


def _first_line(text: str) -> str:
    lines = (line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in lines if line), "")


@dataclass(frozen=True)
class Amount:
    """How many images a plan is for, and on which card."""

    captions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Captions, which are counted.")
    ] = None
    images: Annotated[int | None, typer.Option(min=1, help="Number of images.")] = None
    card: Annotated[
        str, typer.Option(help="h200, h100, a100, l40s, l4, v100, t4, or TFLOP/s as a number.")
    ] = "h200"
    share: Annotated[
        float | None, typer.Option(help="Share of the card's limit that you expect, 0 to 1.")
    ] = None

    def count(self, each: int) -> int:
        """Return the number of images; each caption gets ``each`` of them.

        Raises:
            ConfigError: neither images nor captions are given.
        """
        if self.images is not None:
            return self.images
        if self.captions is None:
            raise ConfigError("the number of images is missing: give --images N or --captions DIR")
        return load(self.captions, "captions").counts["captions"] * each


@command
def plan(
    shared: Shared,
    settings: Settings[SynthesisConfig],
    overrides: Overrides,
    amount: Amount,
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A shipped recipe, or a TOML file.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The preset's faster, lossy form.")] = False,
    work: Annotated[
        Path | None, typer.Option("--work", metavar="DIR", help="Work folder; runs/RECIPE.")
    ] = None,
) -> None:
    """Say what a run will make, what it needs and what it costs. Nothing is made.

    Name a recipe, or, for synthesis alone, a --preset or --model with --images or --captions.
    --config and --set belong to the recipe, or else to synthesize.
    """
    if recipe is not None:
        _plan_recipe(shared, recipe, work or Path("runs") / Path(recipe).stem, overrides, amount)
        return
    from gmail_align.synthesis.architectures import ARCHITECTURES, read_architecture
    from gmail_align.synthesis.cost import USUAL_SHARE, count_cost, make_plan

    config = _planned(settings, fast=fast)
    count = amount.count(config.images_per_caption)
    family = (settings.preset or "").removesuffix("_fast")
    shape = (
        ARCHITECTURES[family] if config.model == family else read_architecture(Path(config.model))
    )
    cost = count_cost(shape, config)
    share = USUAL_SHARE if amount.share is None else amount.share
    made = make_plan(cost, config, count, card=amount.card, share=share)
    details = {
        "denoiser_gflop": cost.denoiser / 1e9,
        "passes": cost.passes,
        "decoder_gflop": cost.decoder / 1e9,
        "height": cost.height,
        "width": cost.width,
    }
    shared.show({**made.to_dict(), **details}, "\n".join(_plan_lines(made, details)))


def _plan_recipe(
    shared: Shared, recipe: str, work: Path, overrides: Overrides, amount: Amount
) -> None:
    from gmail_align import pipeline
    from gmail_align.plan import plan_lines

    made = pipeline.plan(recipe, work, overrides, card=amount.card, share=amount.share)
    shared.show(made, "\n".join(plan_lines(made)))


def _planned(settings: Settings[SynthesisConfig], *, fast: bool) -> SynthesisConfig:
    """Return what is generated; without weights, ``model`` is the name of a preset's family."""
    preset, model = settings.preset, settings.given.get("model")
    if preset is None and (model is None or fast):
        raise ConfigError("nothing is named to plan: give a recipe, --preset sd2, or --model DIR")
    name = f"{preset}_fast" if fast else preset
    if model is None:
        return settings.build(name, {"model": str(preset).removesuffix("_fast")})
    folder = model_of(str(model), "diffusion").expanduser()
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: give a pipeline's folder, or a --preset")
    return settings.build(name, {"model": str(folder)})


def _plan_lines(made: Any, details: Mapping[str, Any]) -> list[str]:
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
