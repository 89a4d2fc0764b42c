"""What one run of a recipe makes and says: its rows, the data they share, and its result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, load
from gmail_align.recipe import Recipe

RESULT = "result.json"

ALIGNMENTS = ("generated_lora_only", "generated_gmail", "generated_gmail_scarce")
"""Captioners whose generated images go through an aligned (the control: adapted) encoder."""
CAPTIONERS = ("generated_raw", *ALIGNMENTS, "real_scarce", "real")
COMPARISONS = {
    "gmail_minus_raw": ("generated_gmail", "generated_raw"),
    "gmail_minus_lora_only": ("generated_gmail", "generated_lora_only"),
    "gmail_scarce_minus_raw": ("generated_gmail_scarce", "generated_raw"),
    "gmail_scarce_minus_real_scarce": ("generated_gmail_scarce", "real_scarce"),
    "real_minus_gmail": ("real", "generated_gmail"),
}
ONE_SEED = (
    "Everything was trained with one seed, so the intervals cover the choice of test images and "
    "not the luck of training: captioners that differ in their seed alone can differ by more."
)
MEAN_OF_SEEDS = (
    "Captioners: means over seeds, with intervals over images and seeds together. Gap, retrieval "
    "and zero-shot of aligned encoders: means over seeds, with the average of the seeds' intervals "
    "over images."
)


@dataclass(frozen=True)
class Data:
    """The artifacts that every seed shares."""

    world: Artifact
    real: Mapping[str, Artifact]
    """Split -> real images."""
    captions: Mapping[str, Artifact]
    """Split -> every caption."""
    generated: Mapping[str, Artifact]
    """Split (train, val) -> images generated from chosen captions."""
    pairs: Mapping[str, Artifact]
    """``train``, ``scarce`` (a share of train) and ``val``."""


@dataclass(frozen=True)
class Row:
    """One captioner of one seed."""

    number: int
    """Which of the seeds, from 0."""
    name: str
    """One of :data:`CAPTIONERS`."""

    def home(self, work: Path) -> Path:
        """Return the folder of all that was trained with this seed."""
        return work / f"seed-{self.number}"


def summarise(recipe: Recipe, data: Data, work: Path) -> dict[str, Any]:
    """Score all captioners side by side and gather every number into one result."""
    from gmail_align.evaluation.captions import CaptionOptions, evaluate_seeds

    homes = [work / f"seed-{number}" for number in range(recipe.seeds)]
    runs = [{name: load(home / "predictions" / name) for name in CAPTIONERS} for home in homes]
    scored = evaluate_seeds(
        runs,
        data.captions["test"],
        work / "scores" / "captions",
        CaptionOptions("tabletop_test_captions", seed=recipe.seed),
        paired=list(COMPARISONS.values()),
    )
    scores = scored.details
    used = {name: int(data.pairs[name].counts["real_images"]) for name in ("train", "scarce")}
    return {
        "protocol": scored.protocol,
        "seed": recipe.seed,
        "seeds": recipe.seeds,
        "captioning": scores["systems"],
        "paired": {name: scores["paired"][f"{a} - {b}"] for name, (a, b) in COMPARISONS.items()},
        "per_seed": scores["per_seed"],
        "gap": {
            "before": _metrics(work / "gap" / "before"),
            "after": _mean([_metrics(home / "gap") for home in homes]),
        },
        **_encoder_scores(
            {"frozen": [work / "scores" / "frozen"], "deployed": [h / "scores" for h in homes]}
        ),
        "alignment": {name: _alignment(homes, name) for name in ALIGNMENTS},
        "real_images": {
            "generated_raw": 0,
            "generated_lora_only": 0,
            "generated_gmail": used["train"],
            "generated_gmail_scarce": used["scarce"],
            "real_scarce": used["scarce"],
            "real": used["train"],
        },
        "counts": {
            "test_images": scored.n["images"],
            "captions": int(data.pairs["train"].counts["pairs"]),
            "generated_images": int(data.generated["train"].counts["images"]),
            "real_images": used["train"],
        },
        "unavailable": scored.unavailable,
        "limits": [ONE_SEED if recipe.seeds == 1 else MEAN_OF_SEEDS],
        "seconds": _seconds(work),
    }


def _encoder_scores(folders: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Collect retrieval and zero-shot results of each route, averaged over its folders."""
    retrieval, zero_shot = {}, {}
    for route, homes in folders.items():
        names = sorted(path.parent.name for path in homes[0].glob(f"*/{RESULT}"))
        metrics = {name: _mean([_metrics(home / name) for home in homes]) for name in names}
        retrieval[route] = metrics.pop("retrieval")
        zero_shot[route] = {
            name: metrics[name]["accuracy"] for name in sorted(metrics) if name != "captions"
        }
    return {"retrieval": retrieval, "zeroshot": zero_shot}


def _metrics(folder: Path) -> dict[str, Any]:
    """Return the estimates of a result that was kept, by metric."""
    from gmail_align.results import estimate_table, read_result

    return estimate_table(read_result(folder).metrics)


def _mean(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average estimates over seeds, their bounds too; what is no number comes from the first."""
    return {name: _mean_of([run[name] for run in runs]) for name in runs[0]}


def _mean_of(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _mean_of([value[key] for value in values]) for key in first}
    return sum(values) / len(values) if isinstance(first, float) else first


def _alignment(homes: Sequence[Path], name: str) -> dict[str, Any]:
    """Say which step the guard kept: the first seed's, and every seed's."""
    notes = [load(home / "encoders" / name).manifest["notes"] for home in homes]
    return {
        "best_step": notes[0]["best_step"],
        "applied": notes[0]["applied"],
        "best_steps": [note["best_step"] for note in notes],
    }


def _seconds(work: Path) -> dict[str, float]:
    """Add up the wall time of every stage by the kind of what it made."""
    total: dict[str, float] = {}
    for path in sorted(work.rglob("manifest.json")):
        manifest = read_json(path)
        total[manifest["kind"]] = total.get(manifest["kind"], 0.0) + manifest["seconds"]
    return {kind: round(seconds, 1) for kind, seconds in total.items()}


def read_json(path: Path) -> Any:
    """Return the value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
