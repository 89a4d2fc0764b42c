"""Caption metrics as COCO's evaluation defines them, with intervals over images.

BLEU, METEOR, ROUGE-L and CIDEr come from pycocoevalcap, one scorer at a time. Values are 0..1;
CIDEr is the tools' CIDEr-D, where 1.08 is a paper's 108. Papers print the others times 100.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gmail_align.errors import GmailAlignError, MissingExtraError, UserError
from gmail_align.metrics.bootstrap import Estimate, Values, bootstrap_mean, bootstrap_statistic
from gmail_align.metrics.java import jar, tokenize
from gmail_align.metrics.meteor import MeteorScores, meteor_in_background
from gmail_align.metrics.ngrams import bleu_counts, cider, corpus_bleu, rouge_l

__all__ = [
    "METRICS",
    "CaptionScores",
    "caption_metrics",
    "compare_captioners",
    "index_predictions",
    "paired_caption_difference",
    "tokenize",
]

BLEUS = ("BLEU1", "BLEU2", "BLEU3", "BLEU4")
METRICS = (*BLEUS, "METEOR", "ROUGE_L", "CIDEr", "SPICE")

_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_GET_CORENLP = (
    'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as g; g()"'
)


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one captioner.

    Attributes:
        image_ids: the images, in the order of ``per_image``.
        metrics: metric -> corpus value and interval.
        per_image: metric -> one score an image. BLEU's and METEOR's do not average to the
            corpus value, which comes from statistics summed over images.
        unavailable: metric that was asked for and not computed -> why, and what to do.
        bleu_counts: (n, 10) summable counts behind BLEU, or (n, 0) without it.
    """

    image_ids: tuple[str, ...]
    metrics: dict[str, Estimate]
    per_image: dict[str, Values] = field(repr=False)
    unavailable: dict[str, str]
    bleu_counts: Values = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the corpus values and what is unavailable, ready for JSON."""
        values = {name: estimate.to_dict() for name, estimate in self.metrics.items()}
        return {"metrics": values, "unavailable": dict(self.unavailable)}


def caption_metrics(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    pretokenized: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> CaptionScores:
    """Score one captioner; see `compare_captioners`."""
    table = compare_captioners(
        {"captioner": predictions},
        references,
        metrics=metrics,
        pretokenized=pretokenized,
        resamples=resamples,
        seed=seed,
    )
    return table["captioner"]


def compare_captioners(
    systems: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    pretokenized: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, CaptionScores]:
    """Score several captioners on the same images, with one tokenizer and one METEOR process.

    Intervals resample images. BLEU is recomputed from each resample's counts; CIDEr is a mean of
    image scores with document frequencies held fixed; METEOR's interval is that of the mean of
    its image scores, moved onto its corpus value. The resamples are the same for all captioners.

    Args:
        systems: name -> image id -> caption.
        references: image id -> human captions, for exactly the same images.
        metrics: which of `METRICS`.
        pretokenized: captions are already PTB tokens; needs Java for METEOR only.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        UserError: image ids differ, a caption is empty, or a metric is unknown.
        MissingExtraError: pycocoevalcap or Java is not installed.
        GmailAlignError: the tokenizer failed. METEOR's failure makes it unavailable instead.
    """
    _require_known(metrics)
    _require_same_images(systems, references)
    ids = tuple(references)
    captions, human = _tokens(systems, references, pretokenized=pretokenized)
    with _meteor_if("METEOR" in metrics, captions, human) as future:
        scores = {name: _ngram_scores(some, human, metrics) for name, some in captions.items()}
        found, unavailable = _meteor_result(future)
    if "SPICE" in metrics:
        unavailable["SPICE"] = spice_unavailable()
    results = {}
    for name, (per_image, counts) in scores.items():
        corpus = {}
        if name in found:
            per_image["METEOR"], corpus["METEOR"] = found[name].per_image, found[name].corpus
        estimates = _estimates(per_image, counts, corpus, resamples=resamples, seed=seed)
        ordered = {metric: estimates[metric] for metric in METRICS if metric in estimates}
        chosen = {metric: ordered[metric] for metric in ordered if metric in metrics}
        results[name] = CaptionScores(ids, chosen, per_image, dict(unavailable), counts)
    return results


def paired_caption_difference(
    a: CaptionScores, b: CaptionScores, metric: str, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate how much better ``a`` is than ``b`` in ``metric``, on resamples of images.

    Raises:
        UserError: the two were scored on different images, or one lacks the metric.
    """
    if a.image_ids != b.image_ids:
        raise UserError("captioners scored on different images, or in another order, do not pair")
    for scores in (a, b):
        if metric not in scores.metrics:
            reason = scores.unavailable.get(metric, "it was not computed")
            raise UserError(f"{metric} cannot be compared: {reason}")
    if metric in BLEUS:
        at = BLEUS.index(metric)

        def difference(weights: Values) -> Values:
            first, second = (corpus_bleu(weights @ scores.bleu_counts) for scores in (a, b))
            apart: Values = first[:, at] - second[:, at]
            return apart

        return bootstrap_statistic(len(a.image_ids), difference, resamples=resamples, seed=seed)
    apart = a.per_image[metric] - b.per_image[metric]
    corpus = a.metrics[metric].value - b.metrics[metric].value
    return bootstrap_mean(apart, resamples=resamples, seed=seed).moved_to(corpus)


def index_predictions(rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Turn (image id, caption) rows into a mapping.

    Raises:
        UserError: an image has two captions.
    """
    pairs = list(rows)
    counts = Counter(image_id for image_id, _ in pairs)
    _refuse("predictions have more than one caption for", [i for i, n in counts.items() if n > 1])
    return dict(pairs)


def spice_unavailable() -> str:
    """Say why SPICE has no value here and what to do about it."""
    places = [os.environ.get("SPICE_LIB", "")]
    try:
        places.append(str(jar("spice/spice-1.0.jar").parent / "lib"))
    except MissingExtraError as error:
        return str(error)
    for place in filter(None, places):
        if all((Path(place) / name).is_file() for name in _CORENLP):
            return (
                f"CoreNLP 3.6.0 is in {place}, but this version does not run SPICE: "
                "score the predictions with pycocoevalcap.spice"
            )
    return (
        f"SPICE needs {' and '.join(_CORENLP)}, which pip does not bring: run {_GET_CORENLP} "
        "(384 MB), or set SPICE_LIB to their folder"
    )


def _tokens(
    systems: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    *,
    pretokenized: bool,
) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Return each system's captions and the references, in the order of ``references``."""
    captions = {name: [own[i] for i in references] for name, own in systems.items()}
    human = [list(some) for some in references.values()]
    if pretokenized:
        return captions, human
    text = {f"system {name}": some for name, some in captions.items()}
    text |= {f"image {at}": some for at, some in enumerate(human)}
    tokens = tokenize(text)
    return (
        {name: tokens[f"system {name}"] for name in systems},
        [tokens[f"image {at}"] for at in range(len(human))],
    )


def _ngram_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]
) -> tuple[dict[str, Values], Values]:
    """Return the image scores of the metrics in Python, and BLEU's counts."""
    scores: dict[str, Values] = {}
    counts: Values = np.zeros((len(captions), 0))
    if set(BLEUS) & set(metrics):
        counts = bleu_counts(captions, references)
        per_image = corpus_bleu(counts)
        scores |= {name: per_image[:, at] for at, name in enumerate(BLEUS) if name in metrics}
    if "ROUGE_L" in metrics:
        scores["ROUGE_L"] = rouge_l(captions, references)
    if "CIDEr" in metrics:
        scores["CIDEr"] = cider(captions, references)
    return scores, counts


def _meteor_if(
    wanted: bool, captions: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]
) -> AbstractContextManager[Future[dict[str, MeteorScores]] | None]:
    return meteor_in_background(captions, references) if wanted else nullcontext()


def _meteor_result(
    future: Future[dict[str, MeteorScores]] | None,
) -> tuple[dict[str, MeteorScores], dict[str, str]]:
    """Return METEOR of every system, or the reason why there is none."""
    if future is None:
        return {}, {}
    try:
        return future.result(), {}
    except GmailAlignError as error:
        return {}, {"METEOR": str(error)}


def _estimates(
    per_image: Mapping[str, Values],
    counts: Values,
    corpus: Mapping[str, float],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """Estimate every metric; ``corpus`` holds values that are no mean of image scores."""
    found = {}
    for name, values in per_image.items():
        if name in BLEUS:
            at = BLEUS.index(name)

            def statistic(weights: Values, at: int = at) -> Values:
                bleu: Values = corpus_bleu(weights @ counts)[:, at]
                return bleu

            found[name] = bootstrap_statistic(
                len(counts), statistic, resamples=resamples, seed=seed
            )
        else:
            mean = bootstrap_mean(values, resamples=resamples, seed=seed)
            found[name] = mean.moved_to(corpus.get(name, mean.value))
    return found


def _require_known(metrics: Sequence[str]) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise UserError(f"no such caption metric: {unknown}; choose from {', '.join(METRICS)}")


def _require_same_images(
    systems: Mapping[str, Mapping[str, str]], references: Mapping[str, Sequence[str]]
) -> None:
    """Refuse anything but one caption and at least one reference for every image."""
    if not references or not systems:
        raise UserError("there is nothing to score: no references or no predictions were given")
    blank = [i for i, some in references.items() if not some or not all(map(str.strip, some))]
    _refuse("references hold no or an empty caption for", blank)
    for name, own in systems.items():
        _refuse(f"{name}: no prediction for", [i for i in references if i not in own])
        _refuse(f"{name}: no references for", [i for i in own if i not in references])
        _refuse(f"{name}: an empty prediction for", [i for i in own if not own[i].strip()])


def _refuse(what: str, image_ids: Sequence[str]) -> None:
    """Raise if there are any ids, with their number and the first three."""
    if image_ids:
        shown = ", ".join(map(str, image_ids[:3])) + (", ..." if len(image_ids) > 3 else "")
        noun = "image" if len(image_ids) == 1 else "images"
        raise UserError(f"{what} {len(image_ids)} {noun}: {shown}")
