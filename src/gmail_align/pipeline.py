"""The whole story: every stage of one recipe, in order, skipping what is complete.

Each line of :func:`run` makes one artifact in the work folder from artifacts above it; nothing is
handed over in memory. Killed at any point and started again, the run goes on and ends with the
same result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmail_align.artifacts import Artifact, fingerprint, first_difference, load, write_json
from gmail_align.errors import ArtifactError
from gmail_align.progress import say
from gmail_align.recipe import Recipe, model_path, read_recipe, shipped_models

if TYPE_CHECKING:
    from gmail_align.encoders.clip import GmailEncoder

RESULT, RECIPE, REPORT = "result.json", "recipe.json", "report"

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


def demo(out: Path, *, overrides: list[str] | None = None, seeds: int = 1) -> dict[str, Any]:
    """Run the shipped ``demo`` recipe into ``out``; see :func:`run`."""
    return run("demo", out, [*(overrides or []), *([f"seeds={seeds}"] if seeds != 1 else [])])


def run(recipe_name: str, work: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Run a recipe into ``work`` and return its result, with the report's path under ``report``.

    Raises:
        UserError: a setting, a model or an input cannot be used, or ``work`` is another recipe's.
    """
    recipe = read_recipe(recipe_name, overrides)
    finished = _finished(work, recipe)
    if finished is not None:
        say(f"{work} is complete: nothing to do")
        return finished
    data = prepare_data(recipe, work)
    extract_shared(recipe, data, work)
    for number in range(recipe.seeds):
        train_seed(recipe, data, work, number)
    result = {"recipe": recipe_name, **summarise(recipe, data, work)}
    write_report_of(recipe, data, work, result)
    write_json(work / RESULT, result)
    return {**result, "report": str(work / REPORT / "index.html")}


def prepare_data(recipe: Recipe, work: Path) -> Data:
    """Draw the world, import it as COCO is imported, generate images and pair them."""
    from gmail_align.data.import_run import import_coco
    from gmail_align.data.pairs import make_pairs
    from gmail_align.data.subsets import choose_captions, keep_share
    from gmail_align.synthesis.run import synthesize
    from gmail_align.tabletop.run import make_world

    sizes, each = recipe.world, recipe.world.captions_per_image
    counts = {
        "train": sizes.train_images,
        "val": sizes.validation_images,
        "test": sizes.test_images,
    }
    world = make_world(counts, work / "world", workers=os.cpu_count() or 1)
    generator = str(model_path(recipe.synthesis.model, "diffusion"))
    synthesis = recipe.synthesis.model_copy(update={"model": generator})
    real, captions, generated, pairs = {}, {}, {}, {}
    for split in counts:
        captions[split], real[split] = import_coco(
            world.path(f"captions_{split}.json"),
            world.path("images"),
            work / "real" / split,
            split_name=split,
        )
    for split in ("train", "val"):
        chosen = choose_captions(captions[split], each, work / "chosen" / split, seed=recipe.seed)
        generated[split] = synthesize(synthesis, chosen, work / "generated" / split)
        pairs[split] = make_pairs(chosen, real[split], generated[split], work / "pairs" / split)
    pairs["scarce"] = keep_share(
        pairs["train"], recipe.scarce_share, work / "pairs" / "scarce", seed=recipe.seed
    )
    return Data(world, real, captions, generated, pairs)


def extract_shared(recipe: Recipe, data: Data, work: Path) -> None:
    """Extract, once, all features that no training changes, and measure the gap before it."""
    from gmail_align.encoders.clip import GmailEncoder
    from gmail_align.encoders.route import Route
    from gmail_align.features.run import extract_images, extract_texts

    clip = GmailEncoder.from_pretrained(model_path(recipe.models.clip, "clip"))
    folder = work / "features" / "frozen"
    for split, images in data.real.items():
        extract_images(images, clip, Route.FROZEN, folder / f"real-{split}")
    for split, images in data.generated.items():
        extract_images(images, clip, Route.FROZEN, folder / f"generated-{split}")
    extract_texts(data.captions["test"], clip, folder / "texts-test")
    _measure_gap(data, work, folder / "generated-val", work / "gap" / "before")
    _score_encoder(clip, data, folder / "real-test", folder / "texts-test", work / "scores/frozen")


def train_seed(recipe: Recipe, data: Data, work: Path, number: int) -> None:
    """Align, train every captioner and caption the test images, all with one seed."""
    from gmail_align.alignment.run import align
    from gmail_align.captioning.run import predict_captions, train_clipcap
    from gmail_align.encoders.clip import GmailEncoder
    from gmail_align.encoders.route import Route
    from gmail_align.features.run import extract_images

    seed, home = recipe.seed + number, work / f"seed-{number}"
    frozen = work / "features" / "frozen"
    clip = model_path(recipe.models.clip, "clip")
    for name in ALIGNMENTS:
        pairs = data.pairs["scarce" if name.endswith("scarce") else "train"]
        encoder_folder = home / "encoders" / name
        align(
            alignment_of(recipe, name),
            pairs,
            data.real["train"],
            data.generated["train"],
            clip,
            encoder_folder,
            seed=seed,
            cache=work / "cache",
        )
        encoder = GmailEncoder.from_pretrained(encoder_folder)
        for split, images in data.generated.items():
            features = home / "features" / name / f"generated-{split}"
            extract_images(images, encoder, Route.GENERATED, features)
        if name == "generated_gmail":
            _measure_gap(data, work, home / "features" / name / "generated-val", home / "gap")
            deployed = home / "features" / name / "real-test"
            extract_images(data.real["test"], encoder, Route.REAL, deployed)
            _score_encoder(encoder, data, deployed, frozen / "texts-test", home / "scores")
    for name in CAPTIONERS:
        train, validation = (_captioner_data(data, work, home, name, s) for s in ("train", "val"))
        captioner = train_clipcap(
            recipe.captioner,
            *train,
            model_path(recipe.models.gpt2, "gpt2"),
            home / "captioners" / name,
            validation=validation,
            seed=seed,
        )
        predict_captions(captioner, load(frozen / "real-test"), home / "predictions" / name)


def alignment_of(recipe: Recipe, name: str) -> Any:
    """Return a captioner's alignment settings: the recipe's own, or the control's weights."""
    if name != "generated_lora_only":
        return recipe.align
    weights = recipe.align.weights.model_copy(
        update={"align": 0.0, "text_real": 0.0, "distill_real": 0.0, "text_generated": 1.0}
    )
    return recipe.align.model_copy(update={"weights": weights})


def _captioner_data(
    data: Data, work: Path, home: Path, name: str, split: str
) -> tuple[Artifact, list[tuple[str, str]]]:
    """Return the features and the (feature id, caption) rows that a captioner is trained on."""
    from gmail_align.data.pairs import read_pairs

    pairs = data.pairs["scarce" if name == "real_scarce" and split == "train" else split]
    rows = read_pairs(pairs)
    if name.startswith("real"):
        folder = work / "features" / "frozen" / f"real-{split}"
        return load(folder), [(row.real_image_id, row.text) for row in rows]
    folder = work / "features" / "frozen" / f"generated-{split}"
    if name in ALIGNMENTS:
        folder = home / "features" / name / f"generated-{split}"
    return load(folder), [(row.generated_image_id, row.text) for row in rows]


def _measure_gap(data: Data, work: Path, generated: Path, out: Path) -> None:
    """Measure the gap on pairs that no training saw."""
    from gmail_align.data.pairs import read_pairs
    from gmail_align.gap.run import measure_gap

    rows = [(row.real_image_id, row.generated_image_id) for row in read_pairs(data.pairs["val"])]
    measure_gap(load(work / "features" / "frozen" / "real-val"), load(generated), rows, out)


def _score_encoder(encoder: GmailEncoder, data: Data, images: Path, texts: Path, out: Path) -> None:
    """Score retrieval and zero-shot classification of real test images by one route."""
    from gmail_align.data.captions import read_captions
    from gmail_align.evaluation.run import evaluate_retrieval, evaluate_zeroshot
    from gmail_align.tabletop.classes import class_sets
    from gmail_align.tabletop.run import class_features, read_scenes, zero_shot_labels

    captions = [(row.caption_id, row.image_id) for row in read_captions(data.captions["test"])]
    features = load(images)
    evaluate_retrieval(
        features, load(texts), captions, out / "retrieval", protocol="tabletop_test_retrieval"
    )
    scenes = read_scenes(data.world, "test")
    for name in class_sets():
        labels = zero_shot_labels(scenes, name)
        if labels:
            protocol = f"tabletop_{name}"
            prompts = class_features(encoder, name)
            evaluate_zeroshot(features, labels, prompts, out / name, protocol=protocol)


def summarise(recipe: Recipe, data: Data, work: Path) -> dict[str, Any]:
    """Score all captioners side by side and gather every number into one result."""
    from gmail_align.data.captions import read_captions
    from gmail_align.evaluation.seeds import evaluate_seeds

    homes = [work / f"seed-{number}" for number in range(recipe.seeds)]
    references: dict[str, list[str]] = {}
    for row in read_captions(data.captions["test"]):
        references.setdefault(row.image_id, []).append(row.text)
    runs = [{name: load(home / "predictions" / name) for name in CAPTIONERS} for home in homes]
    scored = evaluate_seeds(
        runs,
        references,
        work / "scores" / "captions",
        protocol="tabletop_test_captions",
        paired=list(COMPARISONS.values()),
        seed=recipe.seed,
    )
    body = _json(scored.path(RESULT))
    used = {name: int(data.pairs[name].counts["real_images"]) for name in ("train", "scarce")}
    return {
        "protocol": body["protocol"],
        "seed": recipe.seed,
        "seeds": recipe.seeds,
        "captioning": body["systems"],
        "paired": {name: body["paired"][f"{a} - {b}"] for name, (a, b) in COMPARISONS.items()},
        "per_seed": body["per_seed"],
        "gap": {
            "before": _json(work / "gap" / "before" / RESULT)["metrics"],
            "after": _json(homes[0] / "gap" / RESULT)["metrics"],
        },
        **_encoder_scores({"frozen": work / "scores/frozen", "deployed": homes[0] / "scores"}),
        "alignment": {name: _alignment(homes[0] / "encoders" / name) for name in ALIGNMENTS},
        "real_images": {
            "generated_raw": 0,
            "generated_lora_only": 0,
            "generated_gmail": used["train"],
            "generated_gmail_scarce": used["scarce"],
            "real_scarce": used["scarce"],
            "real": used["train"],
        },
        "counts": {
            "test_images": len(references),
            "captions": int(data.pairs["train"].counts["pairs"]),
            "generated_images": int(data.generated["train"].counts["images"]),
            "real_images": used["train"],
        },
        "unavailable": body["unavailable"],
        "limits": [ONE_SEED] if recipe.seeds == 1 else [],
        "seconds": _seconds(work),
    }


def _encoder_scores(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Collect retrieval and zero-shot results of each route."""
    retrieval, zero_shot = {}, {}
    for route, folder in folders.items():
        metrics = {path.parent.name: _json(path)["metrics"] for path in folder.glob(f"*/{RESULT}")}
        retrieval[route] = metrics.pop("retrieval")
        zero_shot[route] = {
            name: metrics[name]["accuracy"] for name in sorted(metrics) if name != "captions"
        }
    return {"retrieval": retrieval, "zeroshot": zero_shot}


def _alignment(folder: Path) -> dict[str, Any]:
    notes = load(folder).manifest["notes"]
    return {"best_step": notes["best_step"], "applied": notes["applied"]}


def _seconds(work: Path) -> dict[str, float]:
    """Add up the wall time of every stage by the kind of what it made."""
    total: dict[str, float] = {}
    for path in sorted(work.rglob("manifest.json")):
        manifest = _json(path)
        total[manifest["kind"]] = total.get(manifest["kind"], 0.0) + manifest["seconds"]
    return {kind: round(seconds, 1) for kind, seconds in total.items()}


def write_report_of(recipe: Recipe, data: Data, work: Path, result: Mapping[str, Any]) -> None:
    """Gather figures and write the page."""
    from gmail_align.report.gather import gather_report
    from gmail_align.report.page import write_report

    command = f"gmail-align run {result['recipe']} --work {work.name}"
    write_report(gather_report(recipe.title, command, work, result), work / REPORT)


def _finished(work: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Return the result if this very recipe is complete in ``work``; refuse another's folder."""
    said = recipe.model_dump(mode="json")
    identity = {"recipe": said, "weights": _weights_fingerprint()}
    path = work / RECIPE
    if path.exists():
        difference = first_difference(_json(path), identity)
        if difference:
            raise ArtifactError(
                f"{work} belongs to another run: {difference}; choose another --out"
            )
        report = work / REPORT / "index.html"
        if (work / RESULT).exists() and report.exists():
            return {**_json(work / RESULT), "report": str(report)}
        return None
    if work.exists() and any(work.iterdir()):
        raise ArtifactError(
            f"{work} is not empty and holds no run of a recipe: choose another --out"
        )
    write_json(path, identity)
    return None


def _weights_fingerprint() -> str:
    """Tell the shipped models apart from those of another version, by name and size."""
    files = sorted(path for path in shipped_models().rglob("*") if path.is_file())
    return fingerprint([[str(p.relative_to(shipped_models())), p.stat().st_size] for p in files])


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
