"""The names of the result's contract, and how each is called and counted in a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Unit:
    """How a number is written: multiplied by ``scale``, with ``digits`` behind the point."""

    scale: float = 100.0
    digits: int = 1
    signed: bool = False


PERCENT: Final = Unit()
DIFFERENCE: Final = Unit(signed=True)
PLAIN: Final = Unit(1.0, 3)


@dataclass(frozen=True)
class Captioner:
    """One captioner of the comparison.

    Attributes:
        key: Its name in the result.
        short: Its name in the ``paired`` section, and that of its alignment run.
        label: Its name in tables and figures.
        phrase: Its name in a sentence.
        detail: What it learned from.
        role: ``plain``, ``ours`` or ``bound`` (no competitor, but what could be reached).
    """

    key: str
    short: str
    label: str
    phrase: str
    detail: str = ""
    role: str = "plain"


BOUND: Final = "real"
CAPTIONERS: Final = (
    Captioner(
        "generated_raw",
        "raw",
        "Generated as real",
        "training on generated images as if they were real",
        "no alignment at all",
    ),
    Captioner(
        "generated_lora_only",
        "lora_only",
        "Generated with LoRA",
        "LoRA without alignment",
        "the control: LoRA, no alignment",
    ),
    Captioner(
        "generated_gmail", "gmail", "GMAIL", "GMAIL", "every caption has its real image", "ours"
    ),
    Captioner(
        "generated_gmail_scarce",
        "gmail_scarce",
        "GMAIL, scarce pairs",
        "GMAIL with scarce pairs",
        "aligned on {share} of the real images",
        "ours",
    ),
    Captioner(
        "real_scarce",
        "real_scarce",
        "Scarce real",
        "training on just those real images",
        "{share} of the real images, nothing else",
    ),
    Captioner(BOUND, "real", "All real", "training on all real images", "the upper bound", "bound"),
)

CAPTION_METRICS: Final = {
    "CIDEr": "CIDEr",
    "BLEU4": "BLEU-4",
    "METEOR": "METEOR",
    "ROUGE_L": "ROUGE-L",
    "SPICE": "SPICE",
}
HEADLINE: Final = "CIDEr"


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

ROUTES: Final = {
    "frozen": ("Frozen", "CLIP as it was"),
    "deployed": ("Deployed", "the route real images take after alignment"),
}
RECALLS: Final = {
    f"{way}_r{k}": f"{label} R@{k}"
    for way, label in (("i2t", "Image to text"), ("t2i", "Text to image"))
    for k in (1, 5, 10)
}

_SHARES: Final = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth"}


def captioner(name: str) -> Captioner:
    """Return the captioner called ``name`` in the result or ``short`` in a comparison."""
    for known in CAPTIONERS:
        if name in (known.key, known.short):
            return known
    spaced = name.replace("_", " ")
    return Captioner(name, name, spaced, spaced)


def in_order(names: Mapping[str, object]) -> list[Captioner]:
    """Return the captioners called ``names``: those that are known first, in their order."""
    known = [item.key for item in CAPTIONERS]
    listed = [name for name in known if name in names]
    return [captioner(name) for name in [*listed, *(name for name in names if name not in known)]]


def detail(item: Captioner, real_images: Mapping[str, object]) -> str:
    """Return what a captioner learned from, with the scarce share in words."""
    return item.detail.replace("{share}", share(real_images))


def share(real_images: Mapping[str, object]) -> str:
    """Return the scarce share of the real images in words: ``a fifth``, ``7%``, or ``a part``."""
    part, whole = real_images.get("real_scarce"), real_images.get(BOUND)
    if not isinstance(part, int) or not isinstance(whole, int) or not 0 < part <= whole:
        return "a part"
    for parts, word in _SHARES.items():
        if abs(part / whole * parts - 1) < 0.02:
            return word
    return f"{100 * part / whole:.2g}%"
