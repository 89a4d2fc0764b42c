"""What images of a weak generator are worth on real photos with captions: Flickr8k.

A small latent diffusion model learns from the training photos and their captions at 64 pixels, and
makes one image for a caption of each. Features come from a MobileNetV2 that has not seen any of
them. ClipCap learns from photos, from generated images as they are, moved by each training-free
map, and by ``align features`` as it chooses by itself. All are tested on the validation photos.
Generated images of pairs that no method saw tell how well the two sides find each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from gmail_align.alignment.feature_config import FeatureAlignConfig
from gmail_align.alignment.feature_data import FeatureSources
from gmail_align.alignment.feature_run import align_features
from gmail_align.alignment.training_free import MAPS, Moments
from gmail_align.artifacts import (
    Artifact,
    Draft,
    begin,
    fingerprint,
    load,
    write_bytes,
)
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.config import CaptionerOptim
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.training import train_captioner
from gmail_align.data.captions import iter_captions
from gmail_align.data.decode import decode_rgb
from gmail_align.data.images import ImageStore
from gmail_align.data.pairs import iter_pairs, make_pairs
from gmail_align.data.subsets import choose_captions
from gmail_align.encoders.feature_map import FeatureMap
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import DataError
from gmail_align.evaluation.captions import CaptionOptions, evaluate_captions
from gmail_align.features.run import finish_rows
from gmail_align.features.store import FEATURES, open_features
from gmail_align.importing.options import ImportOptions
from gmail_align.importing.run import import_data
from gmail_align.metrics.transfer import caption_transfer
from gmail_align.progress import progress, say
from gmail_align.runtime import versions
from gmail_align.studies.cifake_features import BATCH, image_pixels, mobilenet, network_of
from gmail_align.studies.numbers import Statement, mean_over, tested
from gmail_align.studies.result import Number, ShownColumn, ShownRow, StudyResult
from gmail_align.studies.run import StudyOptions
from gmail_align.synthesis.config import SynthesisConfig
from gmail_align.synthesis.run import synthesize
from gmail_align.tabletop.training.corpus import Corpus
from gmail_align.tabletop.training.train import Budget, make_diffusion
from gmail_align.workflow.summary import over_seeds

METRICS: Final = ("CIDEr", "BLEU4")
ROWS: Final = {
    "real": ("Photos", "the bound"),
    "raw": ("Generated as real", "no alignment at all"),
    "mean_shift": ("Mean shift", "training-free"),
    "shift_scale": ("Shift and scale", "training-free, as in ReAlign"),
    "coral": ("CORAL", "training-free"),
    "gmail": ("GMAIL", "align features, as it chooses by itself"),
}
CLAIMS: Final = (
    Statement("GMAIL beats generated images taken for real", "gmail", "raw"),
    Statement("GMAIL beats the mean shift", "gmail", "mean_shift"),
    Statement("Photos beat aligned generated images", "real", "gmail"),
)


@dataclass(frozen=True)
class FlickrBudget:
    """How much of everything; the defaults are those of the study."""

    photos: int = 3000
    """Training photos, each with an image generated from one of its captions."""
    unseen: int = 300
    """Of their pairs, those that no alignment and no captioner sees."""
    side: int = 64
    """Side of the generated images, in pixels."""
    autoencoder: int = 800
    """Steps of the generator's autoencoder."""
    diffusion: tuple[int, int] = (800, 500)
    """Steps of its UNet and text encoder, in two phases."""
    denoising: int = 10
    captioner_steps: int = 400
    seeds: int = 5


def flickr8k(data: Path, options: StudyOptions) -> StudyResult:
    """Run what is missing, and return the table.

    Args:
        data: Folder with ``dataset_flickr8k.json`` (or ``.gz``), ``train.zip`` and ``val.zip``, or
            with a folder ``flickr8k*`` that holds them; the network as in the study of CIFAKE.
        options: How many seeds there are, and the work folder.

    Raises:
        DataError: a file is missing or damaged.
    """
    return flickr8k_within(FlickrBudget(), data, options)


def flickr8k_within(budget: FlickrBudget, data: Path, options: StudyOptions) -> StudyResult:
    """Run the study with sizes and steps of one's own."""
    home = options.work / "flickr8k" / fingerprint([repr(budget)])[:16]
    sides = Sides.open(data, budget, home)
    runs = [
        Run(sides, budget, seed, home / f"seed-{seed}").rows()
        for seed in range(options.seeds or budget.seeds)
    ]
    return _result(runs, sides, budget)


@dataclass(frozen=True)
class Sides:
    """Features of photos and of generated images, pair by pair, and of the validation photos."""

    real: Artifact
    generated: Artifact
    pairs: Artifact
    test: Artifact
    known: Artifact
    """Captions of the validation photos."""

    @classmethod
    def open(cls, data: Path, budget: FlickrBudget, home: Path) -> Sides:
        """Import the photos, train the generator, generate, and embed everything once."""
        train, val = (_photos(data, split, home) for split in ("train", "val"))
        some = choose_captions(train["captions"], None, home / "some", images=budget.photos)
        chosen = choose_captions(some, 1, home / "chosen")
        generator = _generator(train["images"], some, budget, home)
        settings = SynthesisConfig(
            model=str(generator),
            steps=budget.denoising,
            scheduler="dpmpp",
            guidance_scale=3.0,
            batch_size=50,
        )
        made = synthesize(settings, chosen, home / "generated")
        pairs = make_pairs(chosen, train["images"], made, home / "pairs")
        network = network_of(data)
        rows = list(iter_pairs(pairs))
        wanted = {
            "real": (train["images"], [row.real_image_id for row in rows]),
            "generated": (made, [row.generated_image_id for row in rows]),
            "test": (val["images"], ImageStore(val["images"]).ids),
        }
        stores = {
            name: _embedded(images, ids, network, home / "features" / name)
            for name, (images, ids) in wanted.items()
        }
        return cls(stores["real"], stores["generated"], pairs, stores["test"], val["captions"])


class Run:
    """One seed: alignments, captioners and scores of every row."""

    def __init__(self, sides: Sides, budget: FlickrBudget, seed: int, home: Path) -> None:
        self.sides, self.budget, self.seed, self.home = sides, budget, seed, home
        self.real = open_features(sides.real).array.float()
        self.generated = open_features(sides.generated).array.float()
        order = torch.randperm(len(self.real), generator=torch.Generator().manual_seed(seed))
        self.unseen = order[: budget.unseen].sort().values
        self.seen = order[budget.unseen :].sort().values

    def rows(self) -> dict[str, Any]:
        """Return, of every row, the folder of its scores and its retrieval; and what was kept."""
        moved, kept = self.moved()
        rows: dict[str, Any] = {"kept": kept}
        pairs = list(iter_pairs(self.sides.pairs))
        ids = {
            "real": [pairs[at].real_image_id for at in self.seen],
            "generated": [pairs[at].generated_image_id for at in self.seen],
        }
        for name, array in {"real": self.real, **moved}.items():
            side = "real" if name == "real" else "generated"
            what = self.sides.real if name == "real" else self.sides.generated
            home = self.home / name
            store = _store(array[self.seen], ids[side], what, home / "features")
            rows[name] = self.scored(store, home)
            if name != "real":
                rows[f"{name} retrieval"] = self.retrieval(array)
            say(f"seed {self.seed}: {name} is done")
        return rows

    def moved(self) -> tuple[dict[str, Tensor], str]:
        """Return generated features by every method, and what the guard kept."""
        own, other = self.generated[self.seen], self.real[self.seen]
        moments = Moments.of(own), Moments.of(other)
        sets = {"raw": self.generated}
        sets |= {name: fit(*moments)(self.generated) for name, fit in MAPS.items()}
        self.home.mkdir(parents=True, exist_ok=True)
        files = {name: self.home / f"{name}.npy" for name in ("real", "generated", "pairs")}
        np.save(files["real"], other.numpy())
        np.save(files["generated"], own.numpy())
        np.save(files["pairs"], np.repeat(np.arange(len(own))[:, None], 2, axis=1))
        sources = FeatureSources(files["real"], files["generated"], pairs=files["pairs"])
        made = align_features(FeatureAlignConfig(), sources, self.home / "head", seed=self.seed)
        sets["gmail"] = FeatureMap.load(made.folder)(self.generated)
        return sets, str(made.manifest["notes"]["kept"])

    def retrieval(self, generated: Tensor) -> float:
        """Return R@1 between photos and generated images of pairs that nothing has seen."""
        own = torch.arange(len(self.unseen))
        hits = caption_transfer(generated[self.unseen], own, self.real[self.unseen], own)
        return float(hits.mean())

    def scored(self, store: Artifact, home: Path) -> Path:
        """Train a captioner, caption the validation photos, and return the folder of its scores."""
        steps = self.budget.captioner_steps
        optim = CaptionerOptim(
            steps=steps,
            lr=1e-3,
            schedule="linear",
            warmup=steps // 10,
            checkpoint_every=100,
            evaluate_every=steps,
        )
        settings = ClipCapConfig(prefix_length=4, batch_size=40, optim=optim)
        data = CaptionerData((CaptionedImages(store, self.sides.pairs),))
        words = model_path("tabletop", "gpt2")
        made = train_captioner(settings, data, words, home / "captioner", seed=self.seed)
        said = predict_captions(made, self.sides.test, home / "captions")
        options, out = CaptionOptions("captions", metrics=METRICS), home / "scores"
        evaluate_captions({"captions": said}, self.sides.known, out, options)
        return out


def _photos(data: Path, split: str, home: Path) -> dict[str, Artifact]:
    for folder in (data, *sorted(data.glob("flickr8k*"))):
        for name in ("dataset_flickr8k.json", "dataset_flickr8k.json.gz"):
            if (folder / name).is_file():
                files = {
                    "annotations": folder / name,
                    "images": [folder / f"{split}.zip"],
                    "split": [split],
                }
                return import_data("karpathy", files, home / split, ImportOptions())
    raise DataError(f"{data} does not hold dataset_flickr8k.json: give the folder of Flickr8k")


def _generator(images: Artifact, captions: Artifact, budget: FlickrBudget, home: Path) -> Path:
    """Train the diffusion model, or return the one that was trained."""
    out, work = home / "generator", home / "generator-work"
    if not (out / "training.json").exists():
        texts: dict[str, list[str]] = {}
        for row in iter_captions(captions):
            texts.setdefault(row.image_id, []).append(row.text)
        each, store = min(map(len, texts.values())), ImageStore(images)
        size = (budget.side, budget.side)
        pixels = [
            np.asarray(decode_rgb(store.read_bytes(name)).resize(size, Image.Resampling.BICUBIC))
            for name in texts
        ]
        corpus = Corpus(np.stack(pixels), [own[:each] for own in texts.values()])
        steps = Budget(autoencoder=budget.autoencoder, diffusion=budget.diffusion)
        make_diffusion(work, out, corpus, steps, 0)
    return out


def _embedded(images: Artifact, ids: Sequence[str], network: Path, out: Path) -> Artifact:
    """Return the network's features of some images, in their order."""
    config = {"what": "image", "encoder": network.stem, "route": "frozen", "ids": len(ids)}
    draft = begin(out, "features", config, {"images": images})
    if draft.complete is not None:
        return draft.complete
    embed, store, parts = mobilenet(network), ImageStore(images), []
    with progress(f"features of {out.name}", len(ids), "images") as bar:
        for at in range(0, len(ids), BATCH):
            files = [store.read_bytes(name) for name in ids[at : at + BATCH]]
            parts.append(torch.from_numpy(embed(image_pixels(files))))
            bar.advance(len(files))
    return _finish(draft, torch.cat(parts), ids)


def _store(array: Tensor, ids: Sequence[str], of: Artifact, out: Path) -> Artifact:
    """Keep moved features of an artifact as one of their own, which a captioner can read."""
    encoder = of.manifest["config"]["encoder"]
    rows = hashlib.sha256(array.numpy().tobytes()).hexdigest()
    config = {"what": "image", "encoder": encoder, "route": "frozen", "rows": rows}
    draft = begin(out, "features", config, {"of": of})
    return draft.complete or _finish(draft, array, ids)


def _finish(draft: Draft, array: Tensor, ids: Sequence[str]) -> Artifact:
    write_bytes(draft.path(FEATURES), save({"features": array.contiguous()}))
    return finish_rows(draft, ids, "images")


def _result(runs: Sequence[Mapping[str, Any]], sides: Sides, budget: FlickrBudget) -> StudyResult:
    """Gather the table."""
    rows = []
    for name, (label, detail) in ROWS.items():
        means = over_seeds([run[name] for run in runs])
        values = {metric: Number.model_validate(means[metric]) for metric in METRICS}
        if name != "real":
            values["retrieval"] = mean_over([run[f"{name} retrieval"] for run in runs])
        mark = {"real": "bound", "gmail": "ours"}.get(name, "")
        row = {"name": name, "label": label, "detail": detail, "mark": mark, "values": values}
        rows.append(ShownRow.model_validate(row))
    kept = ", ".join(run["kept"] for run in runs)
    return StudyResult(
        study="flickr8k",
        title="What images of a weak generator are worth on photos: Flickr8k",
        about="ClipCap on MobileNetV2 features, tested on the validation photos.",
        scale="real data",
        seeds=len(runs),
        columns=(
            *(ShownColumn(name=name, label=name) for name in METRICS),
            ShownColumn(name="retrieval", label="Photos and unseen generated images, R@1"),
        ),
        rows=tuple(rows),
        claims=tuple(
            tested(one, METRICS[0], *([run[row] for run in runs] for row in one[1:]))
            for one in CLAIMS
        ),
        counts={"pairs": budget.photos, "test photos": sides.test.counts["rows"]},
        notes=(
            f"The generator is weak: it learned {sum(budget.diffusion)} steps from "
            f"{budget.photos} photos of {budget.side} pixels. R@1 is among {budget.unseen} pairs.",
            f"The guard applied: {kept}.",
        ),
        made_from=fingerprint(
            [
                {name: load(place).fingerprint for name, place in run.items() if name in ROWS}
                for run in runs
            ]
        ),
        versions=versions(),
    )
