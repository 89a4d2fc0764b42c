"""``gmail-align run``, ``demo``, ``recipes``, ``plan`` and ``report``: whole runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gmail_align.artifacts import MANIFEST, load, write_bytes
from gmail_align.cli.options import File, Folder, Model, Overrides, Settings
from gmail_align.cli.shared import CacheLimit, Shared, command
from gmail_align.cli.synthesize import generator_config
from gmail_align.errors import ConfigError, UserError
from gmail_align.recipe import recipe_file, recipe_names, recipe_title
from gmail_align.report.outcome import outcome_lines
from gmail_align.synthesis.config import SynthesisConfig


@command
def run(
    shared: Shared,
    recipe: str,
    /,
    overrides: Overrides,
    keep: CacheLimit,
    work: Annotated[Folder, "--work --out"] | None = None,
    engine: Annotated[str, "WHERE"] = "local",
    workers: Annotated[int | None, Field(ge=1)] = None,
    mirror: Annotated[str, "URL"] | None = None,
) -> None:
    """Run the stages of a recipe, skip what is complete, and end with a report.

    Recipes in one work folder share every artifact that they have in common. ``--dry-run`` lists
    what each row uses. ``--config`` is a TOML file whose keys replace the recipe's.

    Args:
        recipe: Name of a shipped recipe, or a TOML file.
        work: Work folder; runs/RECIPE by default.
        engine: Where shards and rows run: local, ray or ray://HOST.
        workers: Shards and rows made at a time; with Ray, the number of actors to ask for.
        mirror: Object store that gets a copy of every artifact; what this machine lacks is taken
            from there.
    """
    from gmail_align import pipeline

    folder = work or Path("runs") / Path(recipe).stem
    if shared.dry_run:
        _show_rows(shared, "run", folder, pipeline.index(recipe, overrides))
        return
    result = pipeline.run(
        recipe,
        folder,
        overrides,
        engine=engine,
        workers=workers,
        mirror=mirror,
        cache_limit=keep.limit,
    )
    again = f"gmail-align run {recipe} --work {folder} --set seeds=5"
    shared.show(result, outcome_lines(result, again, f"open {result['report']} in a browser"))


@command
def init(
    shared: Shared,
    folder: Folder = Path(),
    /,
    *,
    out: File,
    generator: Model | None = None,
    encoder: Model | None = None,
    language_model: Model | None = None,
) -> None:
    """Look at a folder of data and write a recipe that runs as it is.

    It reads COCO's and Karpathy's json, Parquet, WebDataset shards, images with captions beside
    them, and class folders. It prints what it found and what it assumed.

    Args:
        folder: Folder of your data; by default this one.
        out: The recipe's file.
        generator: Diffusion model: a folder, a hub id, or tabletop for the shipped one.
        encoder: CLIP or SigLIP: a folder, a hub id, or tabletop for the shipped one.
        language_model: Language model: a folder, a hub id, or tabletop for the shipped one.
    """
    from gmail_align.workflow.init import Models, init_recipe

    if shared.dry_run:
        shared.show_plan("write a recipe", out, folder=folder)
        return
    made = init_recipe(folder, out, Models(generator, encoder, language_model))
    images = ", ".join(f"{count} {split}" for split, count in made.images.items())
    lines = [f"{folder} holds {made.contents}: {images} images", *made.notes]
    shared.show(
        {**made.__dict__, "path": str(made.path)},
        "\n".join([*lines, f"{out}: gmail-align run {out}"]),
    )


@command
def demo(
    shared: Shared,
    overrides: Overrides,
    out: Folder = Path("runs/demo"),
    seeds: Annotated[int, Field(ge=1)] = 1,
) -> None:
    """Run every stage on the tabletop world, on a CPU and offline, and end with a report.

    A second run does only what is missing.

    Args:
        out: Work folder.
        seeds: Number of seeds to train with.
    """
    from gmail_align import pipeline

    if shared.dry_run:
        _show_rows(shared, "demo", out, pipeline.index("demo", overrides), seeds=seeds)
        return
    result = pipeline.demo(out, overrides=overrides, seeds=seeds)
    again = f"gmail-align demo --out {out} --seeds 5"
    shared.show(
        result, outcome_lines(result, again, "gmail-align init YOUR_PHOTOS --out recipe.toml")
    )


def _show_rows(
    shared: Shared,
    stage: str,
    out: Path,
    index: Mapping[str, Sequence[dict[str, str]]],
    **more: int,
) -> None:
    """Print what the rows of a run use: what they share once, and then what each adds."""
    used = [steps for steps in index.values() if steps]
    common = [step for step in used[0] if all(step in steps for steps in used)] if used else []
    parts = {"every row uses": common} if len(used) > 1 else {}
    for name, steps in index.items():
        parts[f"{name} uses"] = [step for step in steps if step not in common or len(used) == 1]
    lines = [f"# would {stage} into {out}"]
    for title, steps in parts.items():
        lines.append(f"{title}:" if steps else f"{title} nothing more")
        lines += [f"  {step['what']}: {step['folder']}" for step in steps]
    shared.show({"stage": stage, "out": str(out), **more, "rows": index}, "\n".join(lines))


@command
def report(
    shared: Shared, folders: Annotated[list[Path], "DIR..."], /, out: Folder | None = None
) -> None:
    """Write the report of a finished run again, or one of results that you made yourself.

    A report is index.html, tables/ and figures/. A page of results, gaps and aligned encoders calls
    each by the name of its folder.

    Args:
        folders: Folder of a finished run; or folders of results, gaps and encoders.
        out: Folder of the report; by default RUN/report for a run, and report for results.
    """
    from gmail_align import pipeline

    is_run = len(folders) == 1 and not (folders[0] / MANIFEST).exists()
    place = out or (folders[0] / pipeline.REPORT if is_run else Path(pipeline.REPORT))
    if shared.dry_run:
        shared.show_plan("report", place, of=folders)
        return
    page = pipeline.report_again(folders[0], place) if is_run else _report_of(folders, place)
    shared.show({"report": str(page)}, f"report: {page}")


def _report_of(folders: Sequence[Path], out: Path) -> Path:
    """Write one page of results, gaps and encoders."""
    from gmail_align.report.gather import gather
    from gmail_align.report.page import write_report

    words = ["gmail-align", "report", *map(str, folders), "--out", str(out)]
    title = "Results side by side"
    return write_report(gather(folders, title, shlex.join(words)), out)


@command
def app(
    shared: Shared,
    work: Folder,
    /,
    port: Annotated[int, Field(ge=0, le=65535)] = 8321,
) -> None:
    """Serve a page on this machine that shows what a finished run makes of an image.

    It shows the caption of every captioner, and the nearest real and generated images by every
    route. The server listens to this machine alone, and ends with Ctrl-C.

    Args:
        work: Folder of a finished run.
        port: Port of the page; 0 takes a free one.
    """
    if shared.dry_run:
        shared.show_plan("serve a page", None, work=work)
        return
    from gmail_align.app.looking import FinishedRun
    from gmail_align.app.server import make_server

    with make_server(FinishedRun(work), port) as server:
        address = f"http://{server.server_address[0]!s}:{server.server_address[1]}"
        shared.show({"address": address}, f"open {address} in a browser; Ctrl-C ends it")
        server.serve_forever()


@command
def list_recipes(shared: Shared) -> None:
    """List the shipped recipes, each with the first line of its runbook."""
    titles = {name: recipe_title(name) for name in recipe_names()}
    lines = [f"{name:{max(map(len, titles))}}  {title}" for name, title in titles.items()]
    shared.show({"recipes": titles}, "\n".join(lines))


@command
def show_recipe(shared: Shared, name: str, /) -> None:
    """Print a shipped recipe.

    Args:
        name: A name that `list` prints.
    """
    text = recipe_file(name).read_text(encoding="utf-8")
    shared.show({"name": name, "text": text}, text.rstrip("\n"))


@command
def copy_recipe(shared: Shared, name: str, path: Path, /) -> None:
    """Copy a shipped recipe to a file of your own, to change it.

    Args:
        name: A name that `list` prints.
        path: The file to write.
    """
    text = recipe_file(name).read_text(encoding="utf-8")
    if path.is_dir():
        path = path / f"{name}.toml"
    if path.exists():
        raise UserError(f"{path} exists already: choose another name")
    if shared.dry_run:
        shared.show_plan("copy", path, recipe=name)
        return
    write_bytes(path, text.encode())
    shared.show({"path": str(path)}, f"{path}: change it, then gmail-align run {path}")


@dataclass(frozen=True)
class Amount:
    """How many images a plan is for, and on which card.

    Attributes:
        captions: Captions to count: each becomes images.
        images: Number of images.
        card: h200, h100, a100, l40s, l4, v100, t4, or TFLOP/s as a number.
        share: Share of the card's limit that you expect to reach, 0 to 1; by default 0.34 in
            synthesis and 0.3 elsewhere.
    """

    captions: Folder | None = None
    images: Annotated[int | None, Field(ge=1)] = None
    card: str = "h200"
    share: float | None = None

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
    recipe: str | None = None,
    /,
    *,
    settings: Settings[SynthesisConfig],
    overrides: Overrides,
    amount: Amount,
    fast: bool = False,
    work: Folder | None = None,
) -> None:
    """Print what a run will make, what it needs and what it costs. Nothing is made.

    Name a recipe. For synthesis alone, give --preset or --model, and --images or --captions.
    --config and --set change the recipe, or without one the settings of synthesize.

    Args:
        recipe: A shipped recipe, or a TOML file.
        fast: Use the preset's faster form, which draws other images.
        work: Work folder of the run; runs/RECIPE by default.
    """
    if recipe is not None:
        _plan_recipe(shared, recipe, work or Path("runs") / Path(recipe).stem, overrides, amount)
        return
    from gmail_align.synthesis.architectures import ARCHITECTURES, read_architecture
    from gmail_align.synthesis.cost import USUAL_SHARE, count_cost, make_plan

    config = generator_config(settings, fast=fast, planned=True)
    count = amount.count(config.images_per_caption)
    family = (settings.preset or "").removesuffix("_fast")
    shape = (
        ARCHITECTURES[family] if config.model == family else read_architecture(Path(config.model))
    )
    cost = count_cost(shape, config)
    share = USUAL_SHARE if amount.share is None else amount.share
    made = make_plan(cost, config, count, card=amount.card, share=share)
    shared.show({**made.to_dict(), **cost.to_dict()}, "\n".join(made.lines(cost)))


def _plan_recipe(
    shared: Shared, recipe: str, work: Path, overrides: Overrides, amount: Amount
) -> None:
    from gmail_align import pipeline
    from gmail_align.workflow.plan import plan_lines

    made = pipeline.plan(recipe, work, overrides, card=amount.card, share=amount.share)
    shared.show(made, "\n".join(plan_lines(made)))
