"""Run a study: its recipe through the pipeline, then the table of what the run holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from gmail_align.artifacts import fingerprint
from gmail_align.config import nearest_few
from gmail_align.errors import ArtifactError, ConfigError
from gmail_align.pipeline import REPORT, engine_of, fetch_inputs, make, steps_of, write_run_report
from gmail_align.progress import say
from gmail_align.recipe import Recipe, runbook_commands
from gmail_align.runtime import versions
from gmail_align.studies.language import Column, Scale, Study, StudyRow, read_study
from gmail_align.studies.result import (
    RESULT,
    Number,
    ShownColumn,
    ShownRow,
    StudyResult,
    TestedClaim,
    read_study_result,
)
from gmail_align.workflow.measures import captions_of
from gmail_align.workflow.plan import Rates, plan_steps
from gmail_align.workflow.rows import RecipeSteps, RowSteps
from gmail_align.workflow.summary import summarise
from gmail_align.workflow.work import Work, in_order

Folder = Annotated[Path, "DIR"]
_COSTS: Final = (
    *("real_images", "generated_images", "steps", "steps_kept", "seconds", "memory_gb", "tflop"),
)
"""What a row took, by the names of columns."""


@dataclass(frozen=True)
class StudyOptions:
    """How and where a study runs.

    Attributes:
        scale: The shipped small world, or the paper's data and models.
        seeds: Seeds of every training; by default those of the scale's recipe.
        jobs: Rows trained at a time; by default one for each GPU or core.
        engine: Where rows run: local, ray or ray://HOST.
        work: Work folder, which all studies share.
        out: Folder of the tables; WORK/studies/SCALE/NAME by default.
        data: Folder of the data, for a study of real data.
    """

    scale: Scale = "tabletop"
    seeds: int | None = None
    jobs: int | None = None
    engine: Annotated[str, "WHERE"] = "local"
    work: Folder = Path("runs/studies")
    out: Folder | None = None
    data: Folder | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """Keys of the recipe that the options set."""
        given = {"seeds": self.seeds, "workers": self.jobs}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def tables(self) -> Path:
        """Folder of the tables of all studies of this scale."""
        return self.work / "studies" / self.scale

    def place(self, name: str) -> Path:
        """Return the folder of a study's tables."""
        return self.out or self.tables / name


def run_study(name: str, options: StudyOptions) -> StudyResult:
    """Run a study and return its result; what the work folder holds already is not made again.

    Raises:
        UserError: a key, a model or an input cannot be used.
    """
    study = read_study(name)
    recipe = study.recipe(options.scale, options.changes)
    steps = steps_of(recipe, Path.cwd())
    refuse_unmeasured_columns(study, options.scale, steps)
    finished = _finished(options.place(study.name) / RESULT, _made_from(study, recipe, steps))
    if finished is not None:
        say(f"{options.place(study.name)} is complete: nothing to do")
        return finished
    if fetch_inputs(steps, runbook_commands(study.at(options.scale).base)):
        steps = steps_of(recipe, Path.cwd())
    work = Work(options.work, engine_of(recipe, options.engine))
    make(steps, work)
    result = collect(study, options.scale, recipe, steps, work)
    if study.report:
        summary = {"recipe": study.name, **summarise(recipe, steps, work)}
        write_run_report(recipe, steps, work, summary, options.place(study.name) / REPORT)
    result.write(options.place(study.name) / RESULT)
    return result


def plan_study(name: str, options: StudyOptions) -> dict[str, Any]:
    """Say what a study will make, what is missing, and what it costs; without torch.

    Raises:
        UserError: a key cannot be used.
    """
    study = read_study(name)
    steps = steps_of(study.recipe(options.scale, options.changes), Path.cwd())
    refuse_unmeasured_columns(study, options.scale, steps)
    made_by = runbook_commands(study.at(options.scale).base)
    made = plan_steps(steps, Work(options.work), made_by)
    return {"study": study.name, "scale": options.scale, "title": study.title, **made}


def collect(
    study: Study, scale: Scale, recipe: Recipe, steps: RecipeSteps, work: Work
) -> StudyResult:
    """Gather a study's table from the artifacts of its run."""
    summary = summarise(recipe, steps, work)
    rows = {row["name"]: row for row in summary["rows"]}
    columns = study.columns_at(scale)
    numbers = {name: numbers_of(row, _tflop(steps, name, work)) for name, row in rows.items()}
    return StudyResult(
        study=study.name,
        title=study.title,
        number=study.number,
        about=study.about,
        scale=scale,
        base=study.at(scale).base,
        seeds=recipe.seeds,
        columns=tuple(
            ShownColumn(
                name=column.name,
                label=column.label or column.name,
                metric=column.metric_at(scale) or "",
                unit=column.unit,
            )
            for column in columns
        ),
        rows=tuple(_row(row, scale, columns, rows, numbers) for row in study.row),
        claims=_claims(study, scale, summary),
        plots=study.plot,
        counts=summary["counts"],
        seconds=round(sum(summary["seconds"].values()), 1),
        notes=(*summary["limits"], *_unavailable(columns, scale, summary["unavailable"])),
        made_from=_made_from(study, recipe, steps),
        versions=versions(),
    )


def numbers_of(row: Mapping[str, Any], tflop: float | None) -> dict[str, Mapping[str, Any]]:
    """Return every number of a row of a run's result, by the names that columns use."""
    encoder = row["encoder"]
    numbers: dict[str, Mapping[str, Any]] = {}
    for protocol, accuracy in encoder["zeroshot"].items():
        numbers |= {f"{protocol}/accuracy": accuracy}
    for protocol, metrics in encoder["retrieval"].items():
        numbers |= {f"{protocol}/{name}": value for name, value in metrics.items()}
        numbers = {**metrics, **numbers}
    costs = {**row, "tflop": tflop}
    known = {name: {"value": costs[name]} for name in _COSTS if costs.get(name) is not None}
    return {**numbers, **encoder["gap"], **known, **row["metrics"]}


def refuse_unmeasured_columns(study: Study, scale: Scale, steps: RecipeSteps) -> None:
    """Refuse a column whose metric no row will have.

    Raises:
        ConfigError: there is one; the nearest metrics are named.
    """
    rows = [seeds[0] for seeds in steps.rows.values()]
    known = list(dict.fromkeys(name for row in rows for name in names_of(row, steps)))
    for column in study.columns_at(scale):
        if (metric := column.metric_at(scale)) is not None and metric not in known:
            raise ConfigError(
                f"study {study.name}, scale {scale}: column {column.name!r} shows {metric!r}, "
                f"which is measured of no row: {nearest_few(metric, known)}"
            )


def names_of(row: RowSteps, steps: RecipeSteps) -> list[str]:
    """Return the names of the numbers that :func:`numbers_of` will find in a row."""
    names = [f"{protocol}/accuracy" for protocol in row.reader.zeroshot]
    for protocol, step in row.reader.retrieval.items():
        names += [*step.measures, *(f"{protocol}/{name}" for name in step.measures)]
    for own in (row.reader.gap, captions_of(row, steps), row.output):
        names += [] if own is None else own.measures
    for protocol, step in row.answers.items():
        start = f"{protocol} " if len(row.answers) > 1 else ""
        names += [f"{start}{name}" for name in step.measures]
    return [*names, *_COSTS]


def _tflop(steps: RecipeSteps, name: str, work: Work) -> float | None:
    """Count the operations of a row's trainings; None where one of them cannot be counted."""
    trained = [step for step in in_order(steps.rows[name][0].targets) if step.trains]
    costs = [cost for step in trained if (cost := Rates(1.0, None).of(step, work))]
    known = [cost.tflop for cost in costs if cost.tflop is not None]
    return sum(known) if len(known) == len(costs) else None


def _row(
    row: StudyRow,
    scale: Scale,
    columns: Sequence[Column],
    rows: Mapping[str, Mapping[str, Any]],
    numbers: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> ShownRow:
    measured, missing = numbers.get(row.name, {}), row.missing_at(scale)
    own = rows.get(row.name, {"encoder": {}, "per_seed": {}})
    per_seed = {**own["encoder"].get("per_seed", {}), **own["per_seed"]}
    metrics = {column.name: column.metric_at(scale) or "" for column in columns}
    return ShownRow(
        name=row.name,
        label=row.label or row.name,
        detail=row.detail,
        mark=row.mark,
        note=" ".join(filter(None, (row.note, missing))),
        values={c: Number(**measured[m]) for c, m in metrics.items() if m in measured},
        seeds={c: per_seed[m] for c, m in metrics.items() if m in per_seed},
        paper={c: row.paper[c] for c in metrics if c in row.paper},
        status={c: row.status_of(c) for c in metrics if c in row.paper},
    )


def _claims(study: Study, scale: Scale, summary: Mapping[str, Any]) -> tuple[TestedClaim, ...]:
    """Return every claim of the study, those over missing rows as not tested."""
    tested = {claim["name"]: claim for claim in summary["claims"]}
    columns = {column.metric_at(scale): column for column in study.columns_at(scale)}
    printed = {row.name: row.paper for row in study.row}
    claims = []
    for claim in study.claims_at(scale):
        column = columns.get(claim.metric)
        compared = [
            printed[n].get(column.name) if column else None for n in (claim.better, claim.worse)
        ]
        paper = (
            None
            if None in compared
            else round(float(compared[0] or 0) - float(compared[1] or 0), 4)
        )
        own = tested.get(claim.name, {"verdict": "not tested", "difference": None})
        claims.append(
            TestedClaim(
                **claim.model_dump(),
                verdict=own["verdict"],
                difference=own["difference"] and Number(**own["difference"]),
                unit=column.unit if column else "percent",
                paper=paper,
            )
        )
    return tuple(claims)


def _unavailable(
    columns: Iterable[Column], scale: Scale, unavailable: Mapping[str, str]
) -> list[str]:
    labels = {column.metric_at(scale): column.label or column.name for column in columns}
    return [f"{labels[m]}: {why}" for m, why in unavailable.items() if m in labels]


def _made_from(study: Study, recipe: Recipe, steps: RecipeSteps) -> str:
    targets = [step.key for step in steps.targets]
    return fingerprint([study.model_dump(mode="json"), recipe.seed, recipe.seeds, targets])


def _finished(path: Path, made_from: str) -> StudyResult | None:
    """Return the result in a folder if it is this very study's."""
    if not path.exists():
        return None
    try:
        result = read_study_result(path)
    except ArtifactError:
        return None
    return result if result.made_from == made_from else None
