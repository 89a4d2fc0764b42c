"""BLEU, ROUGE-L and CIDEr-D of tokenised captions, by pycocoevalcap's own scorers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gmail_align.errors import UserError
from gmail_align.extras import require
from gmail_align.metrics.bootstrap import Values

References = Sequence[Sequence[str]]
"""For each image, its tokenised captions."""


def bleu_counts(captions: Sequence[str], references: References) -> Values:
    """Return what BLEU needs of each image, as (n, 10) counts that may be added up.

    Columns: length of the caption, length of the closest reference, possible 1- to 4-grams,
    matched 1- to 4-grams.
    """
    scorer = require("pycocoevalcap.bleu.bleu_scorer", "captions")
    rows = []
    for caption, some in zip(captions, references, strict=True):
        cooked = scorer.cook_test(caption, scorer.cook_refs(some))
        length = cooked["testlen"]
        closest = min((abs(other - length), other) for other in cooked["reflen"])[1]
        rows.append([length, closest, *cooked["guess"], *cooked["correct"]])
    return np.array(rows, dtype=np.float64)


def corpus_bleu(counts: Values) -> Values:
    """Return BLEU-1 to BLEU-4 (rows, 4) of summed counts (rows, 10); see `bleu_counts`.

    Papineni et al. (2002) with pycocoevalcap's constants, which keep a set without any matching
    4-gram a little above 0.
    """
    tiny, small = 1e-15, 1e-9
    length, closest = counts[:, 0], counts[:, 1]
    precisions = (counts[:, 6:] + tiny) / (counts[:, 2:6] + small)
    bleus = precisions.cumprod(1) ** (1 / np.arange(1, 5))
    ratio = (length + tiny) / (closest + small)
    brevity: Values = np.exp(1 - 1 / np.minimum(ratio, 1))
    return bleus * brevity[:, None]


def rouge_l(captions: Sequence[str], references: References) -> Values:
    """Return ROUGE-L of each image: F with beta 1.2 of the best precision and best recall."""
    scorer = require("pycocoevalcap.rouge.rouge", "captions").Rouge()
    pairs = zip(captions, references, strict=True)
    return np.array([scorer.calc_score([caption], some) for caption, some in pairs])


def cider(captions: Sequence[str], references: References) -> Values:
    """Return CIDEr-D of each image, on the tools' scale of 0..10.

    Document frequencies come from all references given, so a score depends on the whole set;
    with one image every score is 0.

    Raises:
        UserError: no reference holds a word.
    """
    if not any(caption.split() for some in references for caption in some):
        raise UserError("CIDEr is undefined: no reference caption holds a word")
    scorer = require("pycocoevalcap.cider.cider_scorer", "captions").CiderScorer()
    for caption, some in zip(captions, references, strict=True):
        scorer.cook_append(caption, some)
    return np.asarray(scorer.compute_score()[1], dtype=np.float64)
