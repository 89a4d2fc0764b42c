"""The whole story: every stage of one recipe, in order, skipping what is complete.

Each line of :func:`run` makes one artifact in the work folder from artifacts above it; nothing is
handed over in memory. Killed at any point and started again, the run goes on and ends with the
same result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmail_align.artifacts import (
    MANIFEST,
    fingerprint,
    first_difference,
    load,
    write_json,
)
from gmail_align.errors import ArtifactError
from gmail_align.progress import say
from gmail_align.recipe import Recipe, model_path, read_recipe, shipped_models
from gmail_align.summary import ALIGNMENTS, CAPTIONERS, RESULT, Data, Row, read_json, summarise

if TYPE_CHECKING:
    from gmail_align.captioning.inputs import CaptionedImages
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.engine import Engine

RECIPE, REPORT = "recipe.json", "report"


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
    train_rows(recipe, data, work)
    result = {"recipe": recipe_name, **summarise(recipe, data, work)}
    write_report_of(recipe, data, work, result)
    write_json(work / RESULT, result)
    return {**result, "report": str(work / REPORT / "index.html")}


def prepare_data(recipe: Recipe, work: Path) -> Data:
    """Draw the world, import it as COCO is imported, generate images and pair them."""
    from gmail_align.data.leaks import find_leaks, refuse_leaks
    from gmail_align.data.pairs import make_pairs
    from gmail_align.data.subsets import choose_captions, choose_pairs
    from gmail_align.importing.run import import_data
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
        options = {
            "annotations": world.path(f"captions_{split}.json"),
            "images": [world.path("images")],
            "split": split,
        }
        made = import_data("coco", options, work / "real" / split)
        captions[split], real[split] = made["captions"], made["images"]
    judged = [real["val"], real["test"]]
    refuse_leaks(find_leaks(real["train"], judged, hashed=False), real["train"])
    for split in ("train", "val"):
        chosen = choose_captions(captions[split], each, work / "chosen" / split, seed=recipe.seed)
        generated[split] = synthesize(
            synthesis, chosen, work / "generated" / split, _engine(recipe)
        )
        pairs[split] = make_pairs(chosen, real[split], generated[split], work / "pairs" / split)
    pairs["scarce"] = choose_pairs(
        pairs["train"], recipe.scarce_share, work / "pairs" / "scarce", seed=recipe.seed
    )
    return Data(world, real, captions, generated, pairs)


def extract_shared(recipe: Recipe, data: Data, work: Path) -> None:
    """Extract, once, all features that no training changes, and measure the gap before it."""
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.encoders.route import Route
    from gmail_align.features.run import extract_images, extract_texts

    clip = GmailEncoder.from_pretrained(model_path(recipe.models.clip, "clip"))
    folder = work / "features" / "frozen"
    for split, images in data.real.items():
        extract_images(images, clip, Route.FROZEN, folder / f"real-{split}")
    for split, images in data.generated.items():
        extract_images(images, clip, Route.FROZEN, folder / f"generated-{split}")
    extract_texts(data.captions["test"], clip, folder / "texts-test", route=Route.FROZEN)
    _measure_gap(data, work, folder / "generated-val", work / "gap" / "before")
    _score_encoder(clip, data, folder / "real-test", folder / "texts-test", work / "scores/frozen")


def train_rows(recipe: Recipe, data: Data, work: Path) -> None:
    """Align, train and caption the test images for every row of the result, several at a time."""
    from gmail_align.engine import Job, run_shards

    rows = [Row(number, name) for number in range(recipe.seeds) for name in CAPTIONERS]
    job = Job(
        partial(train_row, recipe, data, work),
        done=lambda row: (row.home(work) / "predictions" / row.name / MANIFEST).exists(),
        label="rows",
        unit="row",
        gpu=_gpus() > 0,
    )
    run_shards(rows, job, _engine(recipe))


def train_row(
    recipe: Recipe, data: Data, work: Path, row: Row, advance: Callable[[int], None]
) -> None:
    """Make one row's encoder if it has its own, its captioner, and captions of the test images."""
    from gmail_align.captioning.inputs import CaptionerData
    from gmail_align.captioning.predict import predict_captions
    from gmail_align.captioning.training import train_captioner

    home = row.home(work)
    if row.name in ALIGNMENTS:
        _align_row(recipe, data, work, row)
    train, validation = (_captioner_data(data, work, home, row.name, s) for s in ("train", "val"))
    captioner = train_captioner(
        recipe.captioner,
        CaptionerData((train,), validation=validation),
        model_path(recipe.models.language_model, "gpt2"),
        home / "captioners" / row.name,
        seed=recipe.seed + row.number,
    )
    real_test = load(work / "features" / "frozen" / "real-test")
    predict_captions(captioner, real_test, home / "predictions" / row.name)
    advance(1)


def _align_row(recipe: Recipe, data: Data, work: Path, row: Row) -> None:
    """Align with the row's pairs, extract what its captioner reads, and measure what changed."""
    from gmail_align.alignment.run import Sources, align
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.encoders.route import Route
    from gmail_align.features.run import extract_images, extract_texts

    home, name = row.home(work), row.name
    pairs = data.pairs["scarce" if name.endswith("scarce") else "train"]
    align(
        alignment_of(recipe, name),
        Sources(pairs, data.real["train"], data.generated["train"]),
        model_path(recipe.models.clip, "clip"),
        home / "encoders" / name,
        seed=recipe.seed + row.number,
        cache=work / "cache",
    )
    encoder = GmailEncoder.from_pretrained(home / "encoders" / name)
    folder = home / "features" / name
    for split, images in data.generated.items():
        extract_images(images, encoder, Route.GENERATED, folder / f"generated-{split}")
    if name == "generated_gmail":
        _measure_gap(data, work, folder / "generated-val", home / "gap")
        extract_images(data.real["test"], encoder, Route.REAL, folder / "real-test")
        texts = work / "features" / "frozen" / "texts-test"
        if encoder.adapts_texts:
            texts = folder / "texts-test"
            extract_texts(data.captions["test"], encoder, texts, route=Route.REAL)
        _score_encoder(encoder, data, folder / "real-test", texts, home / "scores")


def _engine(recipe: Recipe) -> Engine:
    """Work in one process a GPU, or without GPUs in one a core, at most eight."""
    from gmail_align.engine import Engine

    return Engine(workers=recipe.workers or _gpus() or min(os.cpu_count() or 1, 8))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def alignment_of(recipe: Recipe, name: str) -> Any:
    """Return a captioner's alignment settings: the recipe's own, or the control's weights."""
    if name != "generated_lora_only":
        return recipe.align
    weights = recipe.align.weights.model_copy(
        update={"align": 0.0, "text_real": 0.0, "distill_real": 0.0, "text_generated": 1.0}
    )
    return recipe.align.model_copy(update={"weights": weights})


def _captioner_data(data: Data, work: Path, home: Path, name: str, split: str) -> CaptionedImages:
    """Return the features and the captions that a captioner is trained on."""
    from gmail_align.captioning.inputs import CaptionedImages

    pairs = data.pairs["scarce" if name == "real_scarce" and split == "train" else split]
    if name.startswith("real"):
        return CaptionedImages(load(work / "features" / "frozen" / f"real-{split}"), pairs)
    folder = work / "features" / "frozen" / f"generated-{split}"
    if name in ALIGNMENTS:
        folder = home / "features" / name / f"generated-{split}"
    return CaptionedImages(load(folder), pairs)


def _measure_gap(data: Data, work: Path, generated: Path, out: Path) -> None:
    """Measure the gap on pairs that no training saw."""
    from gmail_align.data.pairs import read_pairs
    from gmail_align.gap.run import measure_gap

    rows = [(row.real_image_id, row.generated_image_id) for row in read_pairs(data.pairs["val"])]
    measure_gap(load(work / "features" / "frozen" / "real-val"), load(generated), rows, out)


def _score_encoder(encoder: GmailEncoder, data: Data, images: Path, texts: Path, out: Path) -> None:
    """Score retrieval and zero-shot classification of real test images by one route."""
    from gmail_align.data.labels import Labels
    from gmail_align.evaluation.retrieval import evaluate_retrieval
    from gmail_align.evaluation.zeroshot import ClassFeatures, evaluate_zeroshot
    from gmail_align.tabletop.classes import class_sets
    from gmail_align.tabletop.run import class_features, read_scenes, zero_shot_labels

    protocol = "tabletop_test_retrieval"
    evaluate_retrieval(images, texts, data.captions["test"], out / "retrieval", protocol=protocol)
    scenes = read_scenes(data.world, "test")
    for name, classes in class_sets().items():
        found = zero_shot_labels(scenes, name)
        if found:
            labels = Labels({image: classes[number] for image, number in found.items()})
            prompts = ClassFeatures(classes, class_features(encoder, name))
            protocol = f"tabletop_{name}"
            evaluate_zeroshot(images, labels, prompts, out / name, protocol=protocol)


def write_report_of(recipe: Recipe, data: Data, work: Path, result: Mapping[str, Any]) -> None:
    """Gather figures and write the page."""
    from gmail_align.report.gather import gather_report
    from gmail_align.report.page import write_report

    command = f"gmail-align run {result['recipe']} --work {work.name}"
    write_report(gather_report(recipe.title, command, work, result), work / REPORT)


def _finished(work: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Return the result if this very recipe is complete in ``work``; refuse another's folder."""
    said = recipe.model_dump(mode="json", exclude={"workers"})
    identity = {"recipe": said, "weights": _weights_fingerprint()}
    path = work / RECIPE
    if path.exists():
        difference = first_difference(read_json(path), identity)
        if difference:
            raise ArtifactError(
                f"{work} belongs to another run: {difference}; choose another --out"
            )
        report = work / REPORT / "index.html"
        if (work / RESULT).exists() and report.exists():
            return {**read_json(work / RESULT), "report": str(report)}
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
