"""The result of a run: every number of its rows, encoders and claims, read from artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gmail_align.recipe import Recipe
from gmail_align.recipe_tables import Claim
from gmail_align.report.gather import read_curve
from gmail_align.results import estimate_table, read_result
from gmail_align.workflow.rows import JudgedEncoder, RecipeSteps, RowSteps
from gmail_align.workflow.steps.data import Pairs
from gmail_align.workflow.steps.encoders import Aligned, Gap
from gmail_align.workflow.steps.learners import Probe, TrainedCaptioner
from gmail_align.workflow.steps.multimodal import TrainedLlava
from gmail_align.workflow.work import Step, Work, in_order

if TYPE_CHECKING:
    from gmail_align.items import Items

_ROUNDING: Final = 1e-12
"""Differences up to it are rounding."""
ONE_SEED: Final = (
    "Everything was trained with one seed, so the intervals cover the choice of test images and "
    "not the luck of training: rows that differ in their seed alone can differ by more."
)
MEAN_OF_SEEDS: Final = (
    "Values are means over seeds, with intervals over images and seeds together; those of measures "
    "of the gap that are no mean over images are the average of the seeds' intervals. Differences "
    "of such measures are paired by seed alone, with intervals by Student's t."
)


def summarise(recipe: Recipe, steps: RecipeSteps, work: Work) -> dict[str, Any]:
    """Gather every number of a run into one result."""
    results = [read_result(work.path(step)) for step in steps.scores]
    bodies = [result.details for result in results]
    rows = [_row(seeds, bodies, work) for seeds in steps.rows.values()]
    unavailable: dict[str, str] = {}
    for result in results:
        unavailable |= result.unavailable
    return {
        "title": recipe.title,
        "protocol": recipe.evaluate.captions,
        "seed": recipe.seed,
        "seeds": recipe.seeds,
        "rows": rows,
        "claims": [_claim(claim, bodies, steps, work) for claim in recipe.claim],
        "encoders": _encoders(steps, work),
        "counts": _counts(steps, work),
        "unavailable": unavailable,
        "limits": [ONE_SEED if recipe.seeds == 1 else MEAN_OF_SEEDS],
        "seconds": _seconds(steps, work),
    }


def _row(
    seeds: Sequence[RowSteps], bodies: Sequence[Mapping[str, Any]], work: Work
) -> dict[str, Any]:
    """Say what a row is, what it used, and how it scored."""
    row = seeds[0].row
    scored = next((body for body in bodies if row.name in body["systems"]), None)
    used = [_used(one, work) for one in seeds]
    return {
        "name": row.name,
        "label": row.title,
        "detail": row.detail,
        "mark": row.mark,
        "learn": row.learn,
        "images": row.images,
        "align": row.align,
        "pairs": row.pairs,
        **used[0],
        **{name: _mean([one[name] for one in used]) for name in ("seconds", "steps_kept")},
        "memory_gb": max(one["memory_gb"] for one in used),
        **_scores(seeds, scored, work),
        "encoder": _encoder([one.reader for one in seeds], work),
    }


def _scores(
    seeds: Sequence[RowSteps], scored: Mapping[str, Any] | None, work: Work
) -> dict[str, Any]:
    """Return a row's metrics: means over seeds, and each seed's values."""
    name = seeds[0].row.name
    metrics: dict[str, Any] = {}
    per_seed: dict[str, Any] = {}
    if scored is not None:
        metrics, per_seed = dict(scored["systems"][name]), dict(scored["per_seed"][name])
    alone = [] if scored is not None or seeds[0].output is None else ["output"]
    for result in [*alone, *seeds[0].answers]:
        steps = [row.output if result == "output" else row.answers[result] for row in seeds]
        places = [work.path(step) for step in steps if step is not None]
        runs = [metrics_of(place) for place in places]
        start = f"{result} " if len(seeds[0].answers) > 1 and result != "output" else ""
        over = over_seeds(places)
        metrics |= {f"{start}{metric}": value for metric, value in over.items()}
        per_seed |= {f"{start}{m}": [run[m]["value"] for run in runs] for m in runs[0]}
    return {"metrics": metrics, "per_seed": per_seed}


def over_seeds(folders: Sequence[Path]) -> dict[str, Any]:
    """Average the metrics of one result over seeds; intervals are over images and seeds together.

    Metrics that are no function of sums over images have the average of the seeds' intervals.
    """
    from gmail_align.items import ITEMS, read_items
    from gmail_align.metrics.statistics import over_runs

    means: dict[str, Any] = mean_of([metrics_of(folder) for folder in folders])
    if len(folders) == 1 or not all((folder / ITEMS).exists() for folder in folders):
        return means
    runs = [read_items(folder) for folder in folders]
    columns = [run.in_order_of(runs[0].ids).columns for run in runs]
    together = estimate_table(over_runs(columns))
    return means | {name: together[name] for name in means if name in together}


def _used(row: RowSteps, work: Work) -> dict[str, Any]:
    """Count what a row's training took.

    ``steps_kept`` is how far its trainings were when their best steps were reached, and
    ``memory_gb`` the most memory that one of them held.
    """
    trained = [step for step in in_order(row.targets) if step.trains]
    seen = [one for step in trained for one in images_used(step)]
    notes = [work.get(step).manifest.get("notes", {}) for step in trained]
    steps = [read_curve(work.get(step)).steps for step in trained]
    return {
        "real_images": len(_ids(seen, "real", work)),
        "generated_images": len(_ids(seen, "generated", work)),
        "steps": sum(steps),
        "steps_kept": sum(
            min(note.get("best_step", 0), ran) for note, ran in zip(notes, steps, strict=True)
        ),
        "seconds": sum(work.get(step).manifest["seconds"] for step in trained),
        "memory_gb": max(
            (note.get("speed", {}).get("peak_memory_gb", 0.0) for note in notes), default=0.0
        ),
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 1)


def images_used(step: Step) -> list[tuple[str, Step]]:
    """Return (side, pairs) of the images that training looked at, or that chose the step kept."""
    if isinstance(step, Aligned):
        used = {"generated": step.uses_generated, "real": step.uses_real}
        return [(side, step.pairs) for side, has_a_say in used.items() if has_a_say]
    if isinstance(step, TrainedCaptioner | TrainedLlava):
        return [(seen.side, seen.pairs) for seen in (*step.images, step.validation)]
    if isinstance(step, Probe):
        return [(seen.side, seen.pairs) for seen in step.seen]
    return []


def _ids(seen: Sequence[tuple[str, Step]], side: str, work: Work) -> set[str]:
    from gmail_align.data.pairs import iter_pairs

    pairs = {step.key: step for which, step in seen if which == side}
    return {
        getattr(row, f"{side}_image_id")
        for step in pairs.values()
        for row in iter_pairs(work.get(step))
    }


def _claim(
    claim: Claim, bodies: Sequence[Mapping[str, Any]], steps: RecipeSteps, work: Work
) -> dict[str, Any]:
    """Return a claim with its paired difference and its verdict."""
    name = f"{claim.better} - {claim.worse}"
    tables = [body["paired"][name] for body in bodies if name in body["paired"]]
    differences: Mapping[str, Any] = tables[0] if tables else {}
    if claim.metric not in differences:
        better, worse = steps.rows[claim.better], steps.rows[claim.worse]
        differences = {**differences, **_differences(better, worse, claim.metric, work)}
    difference = differences.get(claim.metric)
    return {
        **claim.model_dump(),
        "verdict": verdict_of(difference),
        "difference": difference,
        "metrics": differences,
    }


def _differences(
    better: Sequence[RowSteps], worse: Sequence[RowSteps], metric: str, work: Work
) -> dict[str, Any]:
    """Compare two rows image by image and seed by seed, in the first result that has the metric.

    ``PROTOCOL/METRIC`` names the result. A measure that is no mean over images is compared seed by
    seed alone.
    """
    from gmail_align.evaluation.compare import score_runs
    from gmail_align.metrics.statistics import seed_mean

    protocol, _, name = metric.rpartition("/")
    for judged, step in better[0].results.items():
        if protocol and getattr(step, "protocol", "") != protocol:
            continue
        if judged not in worse[0].results or name not in metrics_of(work.path(step)):
            continue
        first, second = (
            [_items(one.results[judged], work) for one in row] for row in (better, worse)
        )
        if all(name in items.columns for items in (*first, *second)):
            return {metric: estimate_table(score_runs(first, second, [name]))[name]}
        if len(better) > 1:
            values = [
                [metrics_of(work.path(one.results[judged]))[name]["value"] for one in row]
                for row in (better, worse)
            ]
            gains = [a - b for a, b in zip(*values, strict=True)]
            return estimate_table({metric: seed_mean(gains)})
    return {}


def _items(step: Step, work: Work) -> Items:
    """Return a result image by image; of a gap, the measures that are means over pairs."""
    from gmail_align.data.pairs import read_pairs
    from gmail_align.gap.run import pair_items
    from gmail_align.items import read_items

    if not isinstance(step, Gap):
        return read_items(work.path(step))
    pairs = [
        (row.real_image_id, row.generated_image_id) for row in read_pairs(work.get(step.pairs))
    ]
    return pair_items(work.get(step.real), work.get(step.generated), pairs)


def verdict_of(difference: Mapping[str, Any] | None) -> str:
    """Return ``holds``, ``not significant`` or ``reversed``; ``not tested`` without a number."""
    if difference is None or difference["low"] is None or difference["high"] is None:
        return "not tested"
    if min(difference["low"], difference["value"]) > _ROUNDING:
        return "holds"
    above = max(difference["high"], difference["value"])
    return "reversed" if above < -_ROUNDING else "not significant"


def _encoders(steps: RecipeSteps, work: Work) -> list[dict[str, Any]]:
    """Return what each encoder is judged by: those before alignment, then each aligned one."""
    groups: dict[str, list[JudgedEncoder]] = {}
    for one in steps.frozen:
        groups[f"frozen {len(groups)}"] = [one]
    for seeds in steps.rows.values():
        judged = [row.judged for row in seeds if row.judged is not None]
        if judged and judged[0].results:
            groups.setdefault(next(iter(judged[0].results.values())).key, judged)
    return [_encoder(seeds, work) for seeds in groups.values()]


def _encoder(seeds: Sequence[JudgedEncoder], work: Work) -> dict[str, Any]:
    """Average an encoder's numbers over seeds."""
    first = seeds[0]

    def mean(step_of: Any) -> Any:
        return over_seeds([work.path(step_of(one)) for one in seeds])

    retrieval = {name: mean(lambda one, name=name: one.retrieval[name]) for name in first.retrieval}
    zeroshot = {name: mean(lambda one, name=name: one.zeroshot[name]) for name in first.zeroshot}
    encoders = [work.get(one.encoder) for one in seeds if isinstance(one.encoder, Step)]
    notes = [encoder.manifest["notes"] for encoder in encoders]
    trained = {
        "applied": [note["applied"] for note in notes],
        "best_steps": [note["best_step"] for note in notes],
        "steps": read_curve(encoders[0]).steps if encoders else 0,
        "refusals": [note["message"] for note in notes if "message" in note],
    }
    return {
        "name": first.name,
        "gap": {} if first.gap is None else mean(lambda one: one.gap),
        "retrieval": retrieval,
        "zeroshot": {name: metrics["accuracy"] for name, metrics in zeroshot.items()},
        **(trained if notes else {}),
        **({"per_seed": _each_seed(seeds, work)} if len(seeds) > 1 else {}),
    }


def _each_seed(seeds: Sequence[JudgedEncoder], work: Work) -> dict[str, list[float]]:
    """Return the value of each seed, of retrieval also without the protocol's name before it."""
    first, values = seeds[0], dict[str, list[float]]()
    steps: dict[str, list[Step]] = {}
    if first.gap is not None:
        steps[""] = [one.gap for one in seeds if one.gap is not None]
    steps |= {name: [one.zeroshot[name] for one in seeds] for name in first.zeroshot}
    steps |= {name: [one.retrieval[name] for one in seeds] for name in first.retrieval}
    for protocol, own in steps.items():
        runs = [metrics_of(work.path(step)) for step in own]
        for metric in runs[0]:
            row = [run[metric]["value"] for run in runs]
            values[f"{protocol}/{metric}".lstrip("/")] = row
            if protocol in first.retrieval:
                values.setdefault(metric, row)
    return values


def metrics_of(folder: Path) -> dict[str, Any]:
    """Return the estimates of a result that was kept, by metric."""
    return estimate_table(read_result(folder).metrics)


def mean_of(values: Sequence[Any]) -> Any:
    """Average numbers over seeds, in mappings too; what is no float comes from the first."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: mean_of([value[key] for value in values]) for key in first}
    return sum(values) / len(values) if isinstance(first, float) else first


def _counts(steps: RecipeSteps, work: Work) -> dict[str, int]:
    """Count what the run is made of: pairs of training, and test images."""
    every = in_order(steps.targets)
    test = [read_result(work.path(step)).n["images"] for step in steps.scores]
    pairs = [work.get(step).counts for step in every if isinstance(step, Pairs)]
    most: Mapping[str, int] = max(pairs, key=lambda one: one["pairs"], default={})
    names = ("pairs", "real_images")
    counts = {name: int(most[name]) for name in names if name in most}
    return {**counts, **({"test_images": test[0]} if test else {})}


def _seconds(steps: RecipeSteps, work: Work) -> dict[str, float]:
    """Add up the wall time of every step by the kind of what it made."""
    total: dict[str, float] = {}
    for step in in_order(steps.targets):
        manifest = work.get(step).manifest
        kind = manifest["kind"]
        total[kind] = total.get(kind, 0.0) + manifest["seconds"]
    return {kind: round(seconds, 1) for kind, seconds in total.items()}
