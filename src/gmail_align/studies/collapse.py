"""Escaping collapse: generators that learn from their own images, generation after generation.

Generation 0 is the shipped generator of the tabletop world. Each later one is the generator before
it, trained on with the images that it made. In every generation, ClipCap learns from generated
images as if they were real, from images aligned once (by the encoder of generation 0), from images
aligned anew, and from images that the first captioner has captioned anew. All are tested on real
images. It is written with the public functions of the package, as a user would write it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np

from gmail_align.alignment.run import Sources, align
from gmail_align.artifacts import Artifact, beside, fingerprint, load
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.prompts import caption_photos
from gmail_align.captioning.training import train_captioner
from gmail_align.data.decode import decode_rgb
from gmail_align.data.images import ImageStore
from gmail_align.data.pairs import iter_pairs, make_pairs
from gmail_align.data.subsets import choose_captions
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.evaluation.captions import CaptionOptions, evaluate_captions
from gmail_align.features.run import extract_images
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from gmail_align.progress import say
from gmail_align.recipe import Recipe, read_recipe
from gmail_align.runtime import versions
from gmail_align.studies.language import Plot
from gmail_align.studies.numbers import Statement, tested
from gmail_align.studies.result import Number, ShownColumn, ShownRow, StudyResult
from gmail_align.studies.run import StudyOptions
from gmail_align.synthesis.run import synthesize
from gmail_align.tabletop.run import make_world
from gmail_align.tabletop.training.diffusion import train_on_images
from gmail_align.training.config import OptimConfig
from gmail_align.workflow.summary import over_seeds

BASE: Final = "tabletop-study"
"""The recipe whose sizes, generator, alignment and captioner the study takes."""
METRICS: Final = ("CIDEr", "BLEU4")
METHODS: Final = {
    "raw": ("As if real", "no alignment"),
    "once": ("Aligned once", "by the encoder of generation 0"),
    "each": ("Aligned in every generation", "by an encoder of its own"),
    "relabelled": ("Captioned anew", "by the captioner of generation 0"),
}


@dataclass(frozen=True)
class CollapseBudget:
    """How far generators go on, beside what the recipe says."""

    generations: int = 3
    """Generators that learn from the images of the one before."""
    steps: int = 60
    """Steps that each of them learns for."""
    seeds: int = 3


def collapse(data: Path | None, options: StudyOptions) -> StudyResult:
    """Run the seeds that are missing, and return the table.

    Args:
        data: Not read: the world comes with the package.
        options: How many seeds there are, and the work folder.
    """
    return collapse_within(read_recipe(BASE), CollapseBudget(), options)


def collapse_within(recipe: Recipe, budget: CollapseBudget, options: StudyOptions) -> StudyResult:
    """Run the study with a recipe and a budget of one's own."""
    home = options.work / "collapse" / fingerprint([recipe.tables, vars(budget)])[:16]
    world = World.open(home / "world", _sizes(recipe))
    chains = [
        Chain(world, recipe, budget, seed, home / f"seed-{seed}").run()
        for seed in range(options.seeds or budget.seeds)
    ]
    return _result(chains, budget, _sizes(recipe))


def _sizes(recipe: Recipe) -> dict[str, int]:
    """Return how many images each split has."""
    names = {"train": "train", "validation": "val", "test": "test"}
    return {split: recipe.data[name].tabletop or 0 for name, split in names.items()}


@dataclass(frozen=True)
class World:
    """Real images and captions of each split, and one caption an image to generate from."""

    captions: Mapping[str, Artifact]
    images: Mapping[str, Artifact]
    chosen: Mapping[str, Artifact]

    @classmethod
    def open(cls, home: Path, sizes: Mapping[str, int]) -> World:
        """Draw the scenes and import them."""
        scenes = home / "scenes"
        make_world(sizes, scenes)
        made = {}
        for split in sizes:
            files = {
                "annotations": scenes / f"captions_{split}.json",
                "images": [scenes / "images"],
            }
            made[split] = import_data("coco", files, home / split, ImportOptions())
        chosen = {
            split: choose_captions(made[split]["captions"], 1, home / f"{split}-chosen", seed=0)
            for split in ("train", "val")
        }
        return cls(
            {split: own["captions"] for split, own in made.items()},
            {split: own["images"] for split, own in made.items()},
            chosen,
        )


@dataclass(frozen=True)
class Generation:
    """What one generator made: images and pairs of each split."""

    images: Mapping[str, Artifact]
    pairs: Mapping[str, Artifact]


class Chain:
    """One seed: generators after each other, and what learns from the images of each."""

    def __init__(
        self, world: World, recipe: Recipe, budget: CollapseBudget, seed: int, home: Path
    ) -> None:
        self.world, self.recipe, self.budget = world, recipe, budget
        self.seed, self.home = seed, home

    @cached_property
    def plain(self) -> GmailEncoder:
        """The shipped CLIP."""
        return GmailEncoder.from_pretrained(model_path("tabletop", "clip"))

    def run(self) -> dict[str, Path]:
        """Return the folder of the scores of every row: METHOD_GENERATION, and real."""
        scores = {"real": self.real()}
        generator = model_path("tabletop", "diffusion")
        encoders: list[GmailEncoder] = []
        before: Generation | None = None
        for number in range(self.budget.generations + 1):
            home = self.home / f"generation-{number}"
            if before is not None:
                generator = self.next_generator(generator, before, home)
            before = made = self.generate(generator, home)
            encoders.append(self.align(made, home / "encoder"))
            scores[f"raw_{number}"] = self.learn(made, home / "raw")
            scores[f"once_{number}"] = self.learn(made, home / "once", encoders[0])
            scores[f"each_{number}"] = self.learn(made, home / "each", encoders[-1])
            scores[f"relabelled_{number}"] = self.relabel(made, home / "relabelled")
            say(f"seed {self.seed}, generation {number} is done")
        return scores

    def generate(self, generator: Path, home: Path) -> Generation:
        """Generate an image for every chosen caption."""
        (table,) = self.recipe.generator.values()
        assert table.settings is not None, "the recipe's generator is a model"
        change = {"model": str(generator), "seed": self.seed}
        config = table.settings.model_copy(update=change)
        images, pairs = {}, {}
        for split, captions in self.world.chosen.items():
            images[split] = synthesize(config, captions, home / f"images-{split}")
            sides = self.world.images[split], images[split]
            pairs[split] = make_pairs(captions, *sides, home / f"pairs-{split}")
        return Generation(images, pairs)

    def next_generator(self, generator: Path, made: Generation, home: Path) -> Path:
        """Train a generator on with the images that it made."""
        out, work = home / "generator", home / "generator-work"
        if out.exists():
            return out
        work.mkdir(parents=True, exist_ok=True)
        store = ImageStore(made.images["train"])
        rows = list(iter_pairs(made.pairs["train"]))
        seen = [np.asarray(decode_rgb(store.read_bytes(row.generated_image_id))) for row in rows]
        steps = self.budget.steps
        config = OptimConfig(
            steps=steps,
            lr=3e-4,
            schedule="constant",
            warmup=min(10, steps - 1),
            checkpoint_every=50,
        )
        texts = [row.text for row in rows]
        pipeline = train_on_images(generator, np.stack(seen), texts, config, work, seed=self.seed)
        pipeline.save_pretrained(work / "pipeline")
        os.replace(work / "pipeline", out)  # a folder of this name is whole
        shutil.rmtree(work)
        return out

    def align(self, made: Generation, out: Path) -> GmailEncoder:
        """Align the shipped CLIP to the images of a generation."""
        sources = Sources(made.pairs["train"], self.world.images["train"], made.images["train"])
        base = model_path("tabletop", "clip")
        align(self.recipe.align["gmail"], sources, base, out, seed=self.seed)
        return GmailEncoder.from_pretrained(out)

    def learn(self, made: Generation, home: Path, encoder: GmailEncoder | None = None) -> Path:
        """Train a captioner on the images of a generation, and return the folder of its scores."""
        model, route = encoder or self.plain, Route.FROZEN if encoder is None else Route.GENERATED
        sets = {
            split: CaptionedImages(
                extract_images(images, model, route, home / f"features-{split}"),
                made.pairs[split],
            )
            for split, images in made.images.items()
        }
        return self.scored(sets, home, encoder)

    def relabel(self, made: Generation, home: Path) -> Path:
        """Train on the captions that the first captioner gives to the images of a generation."""
        teacher = load(self.home / "generation-0" / "raw" / "captioner", "captioner")
        sets = {}
        for split, images in made.images.items():
            out = home / f"captions-{split}"
            said = caption_photos(images, teacher, self.plain, out, PredictConfig(beam=1))
            sets[split] = CaptionedImages(load(beside(out, ".features")), said)
        return self.scored(sets, home)

    def real(self) -> Path:
        """Train on the real images themselves: the bound."""
        home, sets = self.home / "real", {}
        for split, captions in self.world.chosen.items():
            images, out = self.world.images[split], home / f"features-{split}"
            sets[split] = CaptionedImages(
                extract_images(images, self.plain, Route.FROZEN, out), captions
            )
        return self.scored(sets, home)

    def scored(
        self, sets: Mapping[str, CaptionedImages], home: Path, encoder: GmailEncoder | None = None
    ) -> Path:
        """Train a captioner, caption the real test images, and score the captions."""
        settings = self.recipe.learn["clipcap"].settings
        assert settings is not None, "the recipe's learner is a captioner"
        data = CaptionerData((sets["train"],), validation=sets["val"])
        words = model_path("tabletop", "gpt2")
        captioner = train_captioner(settings, data, words, home / "captioner", seed=self.seed)
        route = Route.FROZEN if encoder is None else Route.REAL
        images = self.world.images["test"]
        test = extract_images(images, encoder or self.plain, route, home / "test")
        said = predict_captions(captioner, test, home / "captions")
        options = CaptionOptions("captions", metrics=METRICS)
        known, out = self.world.captions["test"], home / "scores"
        evaluate_captions({"captions": said}, known, out, options)
        return out


def _result(
    chains: Sequence[Mapping[str, Path]], budget: CollapseBudget, sizes: Mapping[str, int]
) -> StudyResult:
    """Gather the table: a row for each method and generation."""
    last = budget.generations
    rows = [
        _row(f"{name}_{number}", f"{label}, generation {number}", detail, number, chains)
        for name, (label, detail) in METHODS.items()
        for number in range(last + 1)
    ]
    rows.append(_row("real", "Real images", "the bound", None, chains))
    lines = {
        label: tuple(f"{name}_{number}" for number in range(last + 1))
        for name, (label, _) in METHODS.items()
    }
    worse = f"raw_{last}"
    claims = (
        ("Generators that learn from their own images make worse training images", "raw_0"),
        ("Alignment in every generation beats images taken for real", f"each_{last}"),
        ("One alignment beats images taken for real", f"once_{last}"),
        ("New captions beat images taken for real", f"relabelled_{last}"),
    )
    return StudyResult(
        study="collapse",
        title="Escaping collapse",
        about=(
            "ClipCap on images of generators that learn from their own images, tested on real "
            "images. The claims are about the last generation."
        ),
        scale="tabletop",
        base=BASE,
        seeds=len(chains),
        columns=(
            ShownColumn(name="generation", label="Generation", unit="count"),
            *(ShownColumn(name=name, label=name) for name in METRICS),
        ),
        rows=tuple(rows),
        claims=tuple(
            tested(
                Statement(name, better, worse),
                METRICS[0],
                *([chain[row] for chain in chains] for row in (better, worse)),
            )
            for name, better in claims
        ),
        plots=tuple(Plot(x="generation", y=name, lines=lines) for name in METRICS),
        counts=dict(sizes),
        notes=(
            f"Each generator learns for {budget.steps} steps from {sizes['train']} images that the "
            "one before it made.",
        ),
        made_from=fingerprint(
            [{row: load(place).fingerprint for row, place in own.items()} for own in chains]
        ),
        versions=versions(),
    )


def _row(
    name: str,
    label: str,
    detail: str,
    generation: int | None,
    chains: Sequence[Mapping[str, Path]],
) -> ShownRow:
    means = over_seeds([chain[name] for chain in chains])
    values = {metric: Number.model_validate(means[metric]) for metric in METRICS}
    if generation is not None:
        values["generation"] = Number(value=generation)
    mark: Literal["", "ours", "bound"] = "ours" if name.startswith("each") else ""
    mark = "bound" if generation is None else mark
    return ShownRow(name=name, label=label, detail=detail, mark=mark, values=values)
