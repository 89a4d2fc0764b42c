"""How the measures of a gap are called on its page."""

from __future__ import annotations

from typing import Final

from gmail_align.report.names import GAP, PERCENT, PLAIN, Measure, Unit

GAP_MEASURES: Final[dict[str, Measure]] = {
    **GAP,
    "class_cosine": Measure(
        "Class cosine",
        "higher",
        "How alike a generated image and the real images of its class look to the encoder.",
    ),
    "class_margin": Measure(
        "Class margin",
        "higher",
        "Class cosine minus the cosine to real images of other classes.",
    ),
    "real_class_margin": Measure(
        "Class margin of real images",
        "reference",
        "The same of real images among themselves: what a perfect generator would reach.",
    ),
    "class_r1": Measure(
        "Nearest real image is of the class, %",
        "higher",
        "How often the real image nearest to a generated one is of its class.",
        PERCENT,
    ),
    "real_class_r1": Measure(
        "The same of real images, %",
        "reference",
        "How often the real image nearest to a real one is of its class.",
        PERCENT,
    ),
    "text_recall_real": Measure(
        "Text recall of real images, %",
        "reference",
        "How often the text nearest to a real image is its own caption, or its class.",
        PERCENT,
    ),
    "text_recall_generated": Measure(
        "Text recall of generated images, %",
        "higher",
        "The same of generated images: whether they show what their caption says.",
        PERCENT,
    ),
    "text_cosine_real": Measure(
        "Text cosine of real images",
        "reference",
        "Mean cosine of a real image and its own caption, or its class.",
    ),
    "text_cosine_generated": Measure(
        "Text cosine of generated images",
        "reference",
        "The same of generated images.",
    ),
    "transfer": Measure(
        "Transfer, %",
        "higher",
        "Accuracy on real images of a probe trained on generated ones.",
        PERCENT,
    ),
    "transfer_real": Measure(
        "The same, trained on real images, %",
        "reference",
        "Accuracy on the same real images of a probe trained on as many other real ones.",
        PERCENT,
    ),
    "transfer_captions": Measure(
        "Transfer of captions, %",
        "higher",
        "How often a real image and its generated ones find each other first, both ways.",
        PERCENT,
    ),
    "precision": Measure(
        "Precision, %",
        "higher",
        "Generated images that lie among real ones (the ball to the 5th nearest neighbour).",
        PERCENT,
    ),
    "recall": Measure(
        "Recall, %",
        "higher",
        "Real images that lie among generated ones: how much of the variety is generated.",
        PERCENT,
    ),
    "density": Measure(
        "Density",
        "higher",
        "How crowded with real images the places of generated images are; 1 is as usual.",
    ),
    "coverage": Measure(
        "Coverage, %",
        "higher",
        "Real images that have a generated one nearby (Naeem et al. 2020).",
        PERCENT,
    ),
    "cmmd": Measure(
        "CMMD",
        "lower",
        "Squared kernel distance of the two clouds, times 1000 (Jayasumana et al. 2024).",
    ),
    "frechet_distance": Measure(
        "Fréchet distance",
        "lower",
        "Between Gaussians fitted to the two clouds, on these features; it falls with n.",
    ),
}
"""Metric -> its name, which way is closer, and what it says, in the order of the table."""

GROUP_COLUMNS: Final[dict[str, tuple[str, Unit]]] = {
    "paired_cosine": ("Paired cosine", PLAIN),
    "margin": ("Margin", PLAIN),
    "gen_to_real_r1": ("R@1, %", PERCENT),
    "class_r1": ("Nearest real is of the class, %", PERCENT),
    "probe_auc": ("Probe AUC", PLAIN),
    "precision": ("Precision, %", PERCENT),
    "coverage": ("Coverage, %", PERCENT),
    "centroid_distance": ("Centroid distance", PLAIN),
    "cmmd": ("CMMD", PLAIN),
}

LABELS: Final = {
    "classes": ("Class by class", "Class"),
    "generators": ("Generator by generator", "Generator"),
}
"""Part of the groups -> title of its table and of its first column."""
