"""Scores of one captioner, and of every item alone."""

from __future__ import annotations

import numpy as np

from gmail_align.metrics.caption_scores import compare_captioners
from gmail_align.metrics.statistics import STATISTICS


def caption_metrics(predictions, references, **how):
    """Score one captioner."""
    return compare_captioners({"captioner": predictions}, references, **how)["captioner"]


def per_item(column):
    """Return the metric of every item alone, NaN where it is undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return STATISTICS[column.kind](column.values)
