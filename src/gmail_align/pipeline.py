"""The whole story: every stage of one recipe, in order, skipping what is complete.

Nothing is handed over in memory: each step of the recipe's graph makes one artifact in the work
folder from artifacts that are there. Killed at any point and started again, a run goes on and ends
with the same result; another recipe in the same folder makes only what is new.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gmail_align.artifacts import MANIFEST, fingerprint, sha256_file, write_json
from gmail_align.config import load_json
from gmail_align.engine import Engine, Job, run_shards
from gmail_align.errors import ArtifactError, DataError, ModelError, damage_explained
from gmail_align.mirror import Mirror
from gmail_align.progress import say
from gmail_align.recipe import Recipe, read_recipe, recipe_file, recipe_of, runbook_commands
from gmail_align.results import RESULT, WIDENED
from gmail_align.workflow.graph import Graph
from gmail_align.workflow.measures import refuse_unmeasured
from gmail_align.workflow.outline import Outline
from gmail_align.workflow.rows import RecipeSteps, RowSteps
from gmail_align.workflow.steps.encoders import Aligned, fetch_model
from gmail_align.workflow.steps.learners import CaptionScores, Predictions, TrainedCaptioner
from gmail_align.workflow.steps.multimodal import LlavaCaptions, TrainedLlava
from gmail_align.workflow.summary import summarise
from gmail_align.workflow.work import Work, find_model, in_order, models_of

RECIPE, INDEX, REPORT = "recipe.json", "index.json", "report"
_SLOWER = 2.0
"""Times as long as sampling that training takes for equal operations; measured on small models."""


def demo(out: Path, *, overrides: Sequence[str] = (), seeds: int = 1) -> dict[str, Any]:
    """Run the shipped ``demo`` recipe into ``out``; see :func:`run`."""
    return run("demo", out, [*overrides, *([f"seeds={seeds}"] if seeds != 1 else [])])


def run(
    name: str,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    engine: str = "local",
    workers: int | None = None,
    mirror: str | None = None,
    cache_limit: int | None = None,
) -> dict[str, Any]:
    """Run a recipe into a work folder and return its result, with the report's path.

    Args:
        name: A shipped recipe's name, or a TOML file.
        folder: Work folder; it may hold what other recipes made.
        overrides: ``key=value`` changes of the recipe.
        engine: ``local``, ``ray`` or ``ray://HOST``.
        workers: Rows and shards made at a time; None is what the recipe says.
        mirror: URL of a folder that gets every artifact, and from where missing ones are taken.
        cache_limit: Bytes of decoded pixels of one image store that are kept; None is any number.

    Raises:
        UserError: a setting, a model or an input cannot be used.
    """
    copy = None if mirror is None else Mirror.at(mirror)
    recipe = read_recipe(name, overrides)
    home = home_of(name)
    steps = steps_of(recipe, home)
    finished = _finished(folder, _identity(name, recipe, steps))
    if finished is not None:
        say(f"{folder} is complete: nothing to do")
        return finished
    if fetch_inputs(steps, runbook_commands(name)):
        steps = steps_of(recipe, home)  # a model that has come is known by its content
    places = engine_of(recipe, engine, workers)
    outline = outline_of(steps, Work(folder, places))
    work = Work(folder, places, outline, copy, cache_limit)
    write_json(folder / INDEX, index_of(steps))
    make(steps, work)
    result = {"recipe": name, **summarise(recipe, steps, work)}
    page = write_run_report(recipe, steps, work, result)
    write_json(folder / RESULT, result)
    identity = _identity(name, recipe, steps)
    write_json(folder / RECIPE, {**identity, "result": sha256_file(folder / RESULT)})
    return {**result, "report": str(page)}


def outline_of(steps: RecipeSteps, work: Work) -> Outline | None:
    """Return the steps that are missing and the operations of each; None where none is missing.

    Every step counts a tenth of an average one too, for what is not counted in operations. Rows
    that run side by side share their time.
    """
    from gmail_align.workflow.plan import Rates

    missing = [step for step in in_order(steps.targets) if not work.done(step)]
    rates, costs = Rates(1.0, None), {}
    together = max(1, min(work.engine.workers or 1, sum(map(len, steps.rows.values()))))
    for step in missing:
        cost = rates.of(step, work)
        trains = isinstance(step, Aligned | TrainedCaptioner | TrainedLlava)
        share = _SLOWER / together if trains else 1.0
        costs[work.path(step) / MANIFEST] = 0.0 if cost is None else share * (cost.tflop or 0.0)
    base = (sum(costs.values()) or 1.0) / (10 * max(len(missing), 1))
    return Outline({path: cost + base for path, cost in costs.items()}) if missing else None


def make(steps: RecipeSteps, work: Work) -> None:
    """Make everything that a recipe consists of, and skip what is complete.

    Raises:
        MissingExtraError: a module that it needs is not installed on this machine.
    """
    from gmail_align.workflow.plan import require_extras

    if work.mirror is None and not work.engine.on_ray:  # else another machine may do that part
        require_extras(step for step in in_order(steps.targets) if not work.done(step))
    # 1. Data, leak check, synthesis, pairs, and the features that no training changes.
    for step in steps.shared:
        work.get(step)
    # 2. Alignments, learners and predictions, several rows at a time.
    train_rows(steps, work)
    # 3. Scores of all rows on the same images, from which claims and the report come.
    for scores in steps.scores:
        work.get(scores)


def index(name: str, overrides: Sequence[str] = ()) -> dict[str, list[dict[str, str]]]:
    """Say in words what each row of a recipe uses, without making anything."""
    return index_of(steps_of(read_recipe(name, overrides), home_of(name)))


def plan(
    name: str,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    card: str = "h200",
    share: float | None = None,
) -> dict[str, Any]:
    """Say what a recipe will make in a work folder, what is missing to run it, and what it costs.

    Args:
        name: A shipped recipe's name, or a TOML file.
        folder: Work folder; it may not exist.
        overrides: ``key=value`` changes of the recipe.
        card: A card's name, or its half-precision TFLOP/s.
        share: Share of the card's limit that is expected; None is what each stage usually reaches.

    Raises:
        UserError: a setting cannot be used, or the card is not known.
    """
    from gmail_align.workflow.plan import plan_steps

    steps = steps_of(read_recipe(name, overrides), home_of(name))
    made_by = runbook_commands(name)
    return {"recipe": name, **plan_steps(steps, Work(folder), made_by, card=card, share=share)}


def steps_of(recipe: Recipe, home: Path) -> RecipeSteps:
    """Return every row of every seed, the encoders before alignment, and the scores of all rows.

    Args:
        recipe: The recipe.
        home: Folder that its relative paths start from.

    Raises:
        UserError: an input does not exist, a setting does not fit what it is used for, or a claim's
            metric is not measured.
    """
    find_model.cache_clear()  # weights may have changed since the last look
    graphs = {row.name: Graph(recipe.for_row(row), home) for row in recipe.row}
    seeds = range(recipe.seed, recipe.seed + recipe.seeds)
    rows = {
        row.name: [graphs[row.name].row_steps(row, seed) for seed in seeds] for row in recipe.row
    }
    plain = [graphs[row.name].plain_encoder(row) for row in recipe.row]
    checks = [graph.data.leak_check for graph in graphs.values()]
    steps = RecipeSteps(
        rows=rows,
        frozen=list(
            {
                fingerprint([step.key for step in one.results.values()]): one for one in plain
            }.values()
        ),
        checks=[step for step in checks if step is not None],
        scores=_caption_scores(recipe, rows, graphs),
    )
    refuse_unmeasured(recipe.claim, steps)
    return steps


def _caption_scores(
    recipe: Recipe, rows: Mapping[str, Sequence[RowSteps]], graphs: Mapping[str, Graph]
) -> list[CaptionScores]:
    """Return one step for each set of test images: the scores of all rows that caption it."""
    groups: dict[str, list[str]] = {}
    for name, seeds in rows.items():
        if isinstance(seeds[0].output, Predictions | LlavaCaptions):
            groups.setdefault(graphs[name].sets["test"].captions.key, []).append(name)
    scores = []
    for names in groups.values():
        runs = tuple(
            {name: output for name in names if (output := rows[name][number].output)}
            for number in range(recipe.seeds)
        )
        paired = tuple(
            dict.fromkeys((c.better, c.worse) for c in recipe.claim if c.better in names)
        )
        references = graphs[names[0]].sets["test"].captions
        scores.append(
            CaptionScores(
                runs,
                references,
                recipe.evaluate.captions,
                paired,
                recipe.evaluate.subset,
                recipe.seed,
                interval=WIDENED if len(runs) > 1 else "",
            )
        )
    return scores


def fetch_inputs(steps: RecipeSteps, made_by: Mapping[str, str]) -> bool:
    """Refuse data that do not exist, and fetch models by their hub ids; say whether one came.

    Args:
        steps: The steps of a recipe.
        made_by: Folder, as the recipe names it -> the command that makes it.

    Raises:
        DataError: a path of the recipe does not exist.
        ModelError: a model is neither here nor on the hub.
    """
    every = in_order(steps.targets)
    for path in (path for step in every for path in step.missing):
        raise DataError(f"the recipe names {path}, which does not exist: correct the path")
    absent = [model for model in models_of(every) if model.folder is None]
    for name in (model.name for model in absent if model.name in made_by):
        raise ModelError(f"there is no model {name}: make it with {made_by[name]}")
    for model in absent:
        fetch_model(model)
    return bool(absent)


def train_rows(steps: RecipeSteps, work: Work) -> None:
    """Make the targets of every row: its alignment, its learner, and what that says of tests.

    Rows with most trainings begin first, so that no long row is left for one worker at the end.
    """
    rows = [
        row
        for seed in zip(*steps.rows.values(), strict=True)
        for row in sorted(seed, key=_trainings, reverse=True)
    ]
    job = Job(
        partial(train_row, work),
        done=lambda row: all(work.done(step) for step in row.targets),
        label="rows",
        unit="row",
        gpu=work.engine.gpus() > 0,
    )
    run_shards(rows, job, work.engine)


def _trainings(row: RowSteps) -> int:
    return sum(step.trains for step in in_order(row.targets))


def train_row(work: Work, row: RowSteps, advance: Callable[[int], None]) -> None:
    """Make one row's targets, one after the other."""
    for step in row.targets:
        work.get(step)
    advance(1)


def index_of(steps: RecipeSteps) -> dict[str, list[dict[str, str]]]:
    """Say in words what each row uses, and in which folder of the work folder it lies."""
    index = {}
    for name, seeds in steps.rows.items():
        used = in_order(step for row in seeds for step in row.targets)
        index[name] = [{"what": s.words, "folder": str(s.place(Path()))} for s in used]
    return index


def write_run_report(
    recipe: Recipe,
    steps: RecipeSteps,
    work: Work,
    result: Mapping[str, Any],
    out: Path | None = None,
) -> Path:
    """Gather tables, figures and samples, and write the page."""
    from gmail_align.report.page import write_report
    from gmail_align.workflow.report import gather_report

    command = f"gmail-align run {result['recipe']} --work {work.folder.name}"
    data = gather_report(recipe.title, command, steps, work, result)
    return write_report(data, out or work.folder / REPORT)


def report_again(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the run that a work folder holds, from its artifacts.

    Raises:
        ArtifactError: the folder does not hold a finished run.
    """
    recipe, steps = read_run(folder)
    with damage_explained(folder / RESULT, ArtifactError, "run it again"):
        return write_run_report(recipe, steps, Work(folder), _read(folder / RESULT), out)


def read_run(folder: Path) -> tuple[Recipe, RecipeSteps]:
    """Return the recipe of the run that a work folder holds, and its steps, which are all made.

    Raises:
        ArtifactError: the folder does not hold a finished run, or today's steps are others.
    """
    if not (folder / RESULT).is_file():
        raise ArtifactError(
            f"{folder} does not hold a finished run: make one with gmail-align run or demo"
        )
    before, _ = (_read(folder / name) for name in (RECIPE, RESULT))
    with damage_explained(f"the run in {folder}", ArtifactError, "run it again"):
        recipe, home = recipe_of(before["recipe"]), Path(before["home"])
    steps = steps_of(recipe, home)
    if before.get("steps") != [step.key for step in steps.targets]:
        raise ArtifactError(
            f"the run in {folder} is of other inputs, or of another version of gmail-align: run "
            f"gmail-align run {before.get('name')} --work {folder} again"
        )
    return recipe, steps


def home_of(name: str) -> Path:
    """Return the folder that relative paths of a recipe start from."""
    if not name.endswith(".toml"):
        return Path.cwd()
    return Path(os.path.realpath(recipe_file(name))).parent


def engine_of(recipe: Recipe, place: str, workers: int | None = None) -> Engine:
    """Work in one process a GPU, or without GPUs in one a core, at most eight."""
    local = Engine(place, workers or recipe.workers)
    if local.workers is not None or local.on_ray:
        return local
    return Engine(place, local.gpus() or min(os.cpu_count() or 1, 8))


def _identity(name: str, recipe: Recipe, steps: RecipeSteps) -> dict[str, Any]:
    """Return what a finished run is known by."""
    keys = [step.key for step in steps.targets]
    return {"name": name, "home": str(home_of(name)), "recipe": recipe.tables, "steps": keys}


def _read(path: Path) -> dict[str, Any]:
    return load_json(path, ArtifactError, "run it again")


def _finished(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result if this very recipe is complete in the folder, and nothing changed it."""
    page = folder / REPORT / "index.html"
    try:
        whole = {**identity, "result": sha256_file(folder / RESULT)}
        same = _read(folder / RECIPE) == whole and page.exists()
        result = _read(folder / RESULT) if same else None
    except (OSError, ArtifactError):
        return None
    return None if result is None else {**result, "report": str(page)}
