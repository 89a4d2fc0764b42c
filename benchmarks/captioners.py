"""Captioners side by side, over seeds, from the features of a finished ``gmail-align run``.

    gmail-align run tabletop-evidence --work runs/evidence --set seeds=5
    python benchmarks/captioners.py --work runs/evidence --out runs/captioners [--seeds 5]

Every captioner (ClipCap with the MLP, ClipCap with the transformer, IFCap) is trained on four kinds
of features: frozen ones of real images (the upper bound), generated images as if they were real,
generated images through LoRA without alignment (the control), and GMAIL. IFCap, which never sees
real images, is trained on captions alone instead of the first. All caption the real test images by
the frozen route. Differences are paired, on the same images and seeds; what is complete is not done
again.

``--steps`` sets the steps of every captioner alike, so that none has a larger budget.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmail_align.artifacts import Artifact, load
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.config import CaptionerConfig, PredictConfig
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData, EmbeddedCaptions
from gmail_align.captioning.predict import predict_captions
from gmail_align.captioning.training import train_captioner
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.evaluation.captions import CaptionOptions, evaluate_seeds
from gmail_align.features.run import extract_texts

SYSTEMS = ("real", "raw", "lora_only", "gmail")
GMAIL, RAW, REAL = "gmail", "raw", "real"
FOLDERS = {"lora_only": "generated_lora_only", "gmail": "generated_gmail"}
CAPTIONERS = ("clipcap_mlp", "clipcap_transformer", "ifcap")


@dataclass(frozen=True)
class Inputs:
    """What a work folder holds."""

    work: Path
    texts: Artifact
    language_model: Path

    def images(self, system: str, split: str, seed: int) -> CaptionedImages:
        """Return the features that a system trains on, and their captions."""
        folder = self.work / "features" / "frozen"
        if system not in (REAL, RAW):
            folder = self.work / f"seed-{seed}" / "features" / FOLDERS[system]
        images = "real" if system == REAL else "generated"
        return CaptionedImages(load(folder / f"{images}-{split}"), self.pairs(split))

    def pairs(self, split: str) -> Artifact:
        """Return the pairs of a split."""
        return load(self.work / "pairs" / split)


def open_work(work: Path, out: Path) -> Inputs:
    """Open a work folder, and embed its training captions once."""
    models = json.loads((work / "recipe.json").read_text())["recipe"]["models"]
    clip = GmailEncoder.from_pretrained(model_path(models["clip"], "clip"))
    texts = extract_texts(
        load(work / "pairs" / "train"), clip, out / "texts-train", route=Route.FROZEN
    )
    return Inputs(work, texts, model_path(models["language_model"], "gpt2"))


def settings(steps: int) -> dict[str, Any]:
    """Return what all captioners share."""
    optim = {
        "steps": steps,
        "lr": 1e-3,
        "schedule": "linear",
        "warmup": max(1, steps // 10),
        "checkpoint_every": max(1, steps // 2),
        "evaluate_every": max(1, steps // 4),
    }
    return {"batch_size": 50, "max_tokens": 40, "optim": optim}


def train(
    inputs: Inputs, captioner: str, system: str, seed: int, steps: int, out: Path
) -> Artifact:
    """Train one captioner of one system with one seed."""
    shape: dict[str, Any] = {}
    if captioner == "clipcap_transformer":
        shape = {"mapper": "transformer", "prefix_length": 10, "clip_length": 10}
    config: CaptionerConfig = ClipCapConfig(**settings(steps), **shape)
    data = CaptionerData(
        (inputs.images(system, "train", seed),), validation=inputs.images(system, "val", seed)
    )
    if captioner == "ifcap":
        # On captions alone, or with generated images in place of noisy texts.
        alone = system == "text_only"
        mode = "text_noise" if alone else "gen_embed"
        config = IFCapConfig(mode=mode, noun_count=4, **settings(steps))
        data = CaptionerData(
            () if alone else (inputs.images(system, "train", seed),),
            EmbeddedCaptions(inputs.pairs("train"), inputs.texts),
            inputs.images(REAL, "val", seed),
        )
    return train_captioner(config, data, inputs.language_model, out, seed=seed)


def run_all(inputs: Inputs, seeds: int, steps: int, out: Path) -> list[dict[str, Artifact]]:
    """Train every captioner of every system with every seed, and caption the test images."""
    test = load(inputs.work / "features" / "frozen" / "real-test")
    runs = []
    for seed in range(seeds):
        said = {}
        for captioner in CAPTIONERS:
            systems = SYSTEMS if captioner != "ifcap" else ("text_only", *SYSTEMS[1:])
            for system in systems:
                name = f"{captioner}_{system}"
                home = out / f"seed-{seed}" / name
                model = train(inputs, captioner, system, seed, steps, home / "captioner")
                said[name] = predict_captions(model, test, home / "predictions", PredictConfig())
        runs.append(said)
    return runs


def comparisons() -> list[tuple[str, str]]:
    """Return the paired differences: GMAIL against each other system of the same captioner."""
    found = []
    for captioner in CAPTIONERS:
        others = ("text_only", RAW, "lora_only") if captioner == "ifcap" else (*SYSTEMS[1:3], REAL)
        found += [(f"{captioner}_{GMAIL}", f"{captioner}_{other}") for other in others]
    return found


def main() -> None:
    """Train, predict, score and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    inputs = open_work(given.work, given.out)
    runs = run_all(inputs, given.seeds, given.steps, given.out)
    scored = evaluate_seeds(
        runs,
        given.work / "real" / "test" / "captions",
        given.out / "scores",
        CaptionOptions("captioners"),
        paired=comparisons(),
    )
    for part in ("systems", "paired"):
        for name, metrics in scored.details[part].items():
            for metric in ("CIDEr", "BLEU4"):
                value = metrics[metric]
                low, high = value["low"], value["high"]
                print(f"{name:58} {metric:6} {value['value']:7.3f} [{low:7.3f}, {high:7.3f}]")


if __name__ == "__main__":
    main()
