"""How the metrics of a result are called and counted in a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Unit:
    """How a number is written: multiplied by ``scale``, with ``digits`` after the point."""

    scale: float = 100.0
    digits: int = 1
    signed: bool = False


PERCENT: Final = Unit()
DIFFERENCE: Final = Unit(signed=True)
PLAIN: Final = Unit(1.0, 3)


ROW_METRICS: Final = {
    "CIDEr": "CIDEr",
    "BLEU4": "BLEU-4",
    "METEOR": "METEOR",
    "ROUGE_L": "ROUGE-L",
    "SPICE": "SPICE",
    "accuracy": "Accuracy",
    "class_mean": "Class mean",
}
ACCURACIES: Final = ("accuracy", "class_mean")
"""Metrics of a classification."""
HEADLINE: Final = "CIDEr"
"""What rows are compared by where no claim names a metric."""
REMARKS: Final = {
    "CIDEr": "CIDEr weighs words by how rare they are in these references, so scores compare "
    "within this page and not with those of papers on other images."
}
"""What a reader has to know of a metric."""


@dataclass(frozen=True)
class Measure:
    """One measure of the gap: how it is called, which way is closer, and what it says."""

    label: str
    closer: str
    meaning: str
    unit: Unit = PLAIN


GAP: Final = {
    "paired_cosine": Measure(
        "Paired cosine",
        "higher",
        "How alike a generated image and the real image of the same caption look to the encoder.",
    ),
    "unpaired_cosine": Measure(
        "Unpaired cosine",
        "lower",
        "How alike real and generated images of different captions are: what paired ones stand on.",
    ),
    "margin": Measure(
        "Margin",
        "higher",
        "Paired minus unpaired. A space in which everything looks alike gains nothing here.",
    ),
    "gen_to_real_r1": Measure(
        "Generated-to-real R@1, %",
        "higher",
        "How often the nearest real image of a generated one is its own.",
        PERCENT,
    ),
    "gen_to_real_r5": Measure(
        "Generated-to-real R@5, %",
        "higher",
        "How often its own real image is among the five nearest.",
        PERCENT,
    ),
    "probe_auc": Measure(
        "Probe AUC",
        "lower",
        "How well a linear probe tells generated from real: 0.5 is a coin toss, 1 is always.",
    ),
    "centroid_distance": Measure(
        "Centroid distance",
        "lower",
        "How far apart the means of the two clouds are, features scaled to length one.",
    ),
    "norm_ratio": Measure(
        "Norm ratio",
        "nearer 1",
        "Mean length of generated features over that of real ones.",
    ),
}

RECALLS: Final = {
    f"{way}_r{k}": f"{label} R@{k}"
    for way, label in (("i2t", "Image to text"), ("t2i", "Text to image"))
    for k in (1, 5, 10)
}
