"""Caption metrics as COCO's evaluation defines them, with intervals over images.

BLEU, METEOR, ROUGE-L, CIDEr and SPICE come from pycocoevalcap, one scorer at a time; the slow ones
run beside the others. Values are 0..1; CIDEr is the tools' CIDEr-D, where 1.08 is a paper's 108.
Papers print the others times 100.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gmail_align.errors import GmailAlignError, UserError
from gmail_align.metrics.bootstrap import Estimate, Values
from gmail_align.metrics.java import tokenize
from gmail_align.metrics.meteor import Meteor, meteor_process
from gmail_align.metrics.ngrams import bleu_counts, cider, rouge_l
from gmail_align.metrics.spice import corenlp, spice_in_background
from gmail_align.metrics.statistics import Column, differences, estimates, mean_column
from gmail_align.metrics.wmd import train_word_vectors, wmd_similarity

__all__ = [
    "METRICS",
    "CaptionScores",
    "caption_metrics",
    "compare_captioners",
    "index_predictions",
    "paired_caption_difference",
    "tokenize",
    "with_column",
]

BLEUS = ("BLEU1", "BLEU2", "BLEU3", "BLEU4")
METRICS = (*BLEUS, "METEOR", "ROUGE_L", "CIDEr", "SPICE", "WMD")
NO_VECTORS = (
    "WMD needs word vectors, and none were given: name a file of word2vec or GloVe vectors "
    "(--word-vectors FILE), or have them trained on the references (--word-vectors references)"
)


@dataclass(frozen=True)
class WordVectors:
    """Word vectors for WMD.

    Attributes:
        vectors: gensim's ``KeyedVectors``; None to train them on the references.
        normalise: whether words get unit length first.
        source: where they come from, in words.
    """

    vectors: Any = field(default=None, repr=False)
    normalise: bool = True
    source: str = "trained on the references"


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one captioner.

    Attributes:
        image_ids: the images, in the order of every column.
        metrics: metric -> corpus value and interval.
        columns: metric -> what every image adds to it. The image scores of BLEU and METEOR do not
            average to the corpus value, which comes from statistics summed over images.
        unavailable: metric that was asked for and not computed -> why, and what to do.
    """

    image_ids: tuple[str, ...]
    metrics: dict[str, Estimate]
    columns: dict[str, Column] = field(repr=False)
    unavailable: dict[str, str]

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
    word_vectors: WordVectors | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> CaptionScores:
    """Score one captioner; see `compare_captioners`."""
    table = compare_captioners(
        {"captioner": predictions},
        references,
        metrics=metrics,
        pretokenized=pretokenized,
        word_vectors=word_vectors,
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
    word_vectors: WordVectors | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, CaptionScores]:
    """Score several captioners on the same images, with one tokenizer and one METEOR process.

    Intervals resample images. BLEU and METEOR are recomputed from each resample's sums; the others
    are means of image scores, CIDEr's with document frequencies held fixed. The resamples are the
    same for all captioners and metrics.

    Args:
        systems: name -> image id -> caption.
        references: image id -> human captions, for exactly the same images.
        metrics: which of `METRICS`.
        pretokenized: captions are already PTB tokens; needs Java for METEOR and SPICE only.
        word_vectors: what WMD measures with; without, it is unavailable.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        UserError: image ids differ, a caption is empty, or a metric is unknown.
        MissingExtraError: pycocoevalcap or Java is not installed.
        GmailAlignError: the tokenizer failed. METEOR's or SPICE's failure makes it unavailable
            instead.
    """
    _require_known(metrics)
    _require_same_images(systems, references)
    ids = tuple(references)
    with ExitStack() as running:
        process = running.enter_context(_meteor_if("METEOR" in metrics))
        captions, human = _tokens(systems, references, pretokenized=pretokenized)
        futures: dict[str, Future[dict[str, Values]]] = {}
        if process is not None:
            futures["METEOR"] = process.score(captions, human)
        unavailable = _without("SPICE" in metrics, "WMD" in metrics, word_vectors)
        if "SPICE" in metrics and "SPICE" not in unavailable:
            futures["SPICE"] = running.enter_context(spice_in_background(captions, human))
        table = {name: _ngram_columns(some, human, metrics) for name, some in captions.items()}
        if "WMD" in metrics and word_vectors is not None:
            for name, values in _wmd(captions, human, word_vectors).items():
                table[name]["WMD"] = mean_column(values)
        how = {"resamples": resamples, "seed": seed}
        early = {name: estimates(columns, **how) for name, columns in table.items()}
        unavailable |= _collect(futures, table)
    results = {}
    for name, columns in table.items():
        late = {metric: column for metric, column in columns.items() if metric not in early[name]}
        found = early[name] | estimates(late, **how)  # one seed: the same resamples
        ordered = [metric for metric in METRICS if metric in columns]
        scores = {metric: found[metric] for metric in ordered}
        kept = {metric: columns[metric] for metric in ordered}
        results[name] = CaptionScores(ids, scores, kept, dict(unavailable))
    return results


def with_column(
    scores: CaptionScores, metric: str, column: Column, *, resamples: int = 1000, seed: int = 0
) -> CaptionScores:
    """Return the scores with one more metric, given by a row an image in the same order."""
    found = estimates({metric: column}, resamples=resamples, seed=seed)
    return replace(
        scores, metrics=scores.metrics | found, columns=scores.columns | {metric: column}
    )


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
    first, second = {metric: a.columns[metric]}, {metric: b.columns[metric]}
    return differences(first, second, resamples=resamples, seed=seed)[metric]


def index_predictions(rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Turn (image id, caption) rows into a mapping.

    Raises:
        UserError: an image has two captions.
    """
    pairs = list(rows)
    counts = Counter(image_id for image_id, _ in pairs)
    _refuse("predictions have more than one caption for", [i for i, n in counts.items() if n > 1])
    return dict(pairs)


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


def _ngram_columns(
    captions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]
) -> dict[str, Column]:
    """Return the columns of the metrics in Python."""
    columns: dict[str, Column] = {}
    if set(BLEUS) & set(metrics):
        counts = bleu_counts(captions, references)
        columns = {name: Column(name.lower(), counts) for name in BLEUS if name in metrics}
    if "ROUGE_L" in metrics:
        columns["ROUGE_L"] = mean_column(rouge_l(captions, references))
    if "CIDEr" in metrics:
        columns["CIDEr"] = mean_column(cider(captions, references))
    return columns


def _meteor_if(wanted: bool) -> AbstractContextManager[Meteor | None]:
    return meteor_process() if wanted else nullcontext()


def _without(spice: bool, wmd: bool, word_vectors: WordVectors | None) -> dict[str, str]:
    """Say what of SPICE and WMD cannot be computed, and why."""
    unavailable = {}
    if spice:
        try:
            corenlp()
        except GmailAlignError as error:
            unavailable["SPICE"] = str(error)
    if wmd and word_vectors is None:
        unavailable["WMD"] = NO_VECTORS
    return unavailable


def _wmd(
    captions: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    word_vectors: WordVectors,
) -> dict[str, Values]:
    vectors = word_vectors.vectors
    if vectors is None:
        vectors = train_word_vectors([text for some in references for text in some])
    normalise = word_vectors.normalise
    return {
        name: wmd_similarity(own, references, vectors, normalise=normalise)
        for name, own in captions.items()
    }


def _collect(
    futures: Mapping[str, Future[dict[str, Values]]], table: Mapping[str, dict[str, Column]]
) -> dict[str, str]:
    """Wait for METEOR and SPICE, and put their columns into ``table``; say what failed."""
    unavailable = {}
    for metric, future in futures.items():
        try:
            found = future.result()
        except GmailAlignError as error:
            unavailable[metric] = str(error)
            continue
        for name, values in found.items():
            table[name][metric] = (
                Column("meteor", values) if metric == "METEOR" else _defined_mean(values)
            )
    return unavailable


def _defined_mean(values: Values) -> Column:
    """Return the column of a mean that leaves undefined values out."""
    return mean_column(np.nan_to_num(values), ~np.isnan(values))


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
        faults = {
            "no prediction for": [i for i in references if i not in own],
            "no references for": [i for i in own if i not in references],
            "an empty prediction for": [i for i in own if not own[i].strip()],
        }
        told = [_listed(what, images) for what, images in faults.items() if images]
        if told:
            raise UserError(f"{name}: {'; '.join(told)}")


def _refuse(what: str, image_ids: Sequence[str]) -> None:
    """Raise if there are any ids, with their number and the first three."""
    if image_ids:
        raise UserError(_listed(what, image_ids))


def _listed(what: str, image_ids: Sequence[str]) -> str:
    shown = ", ".join(map(str, image_ids[:3])) + (", ..." if len(image_ids) > 3 else "")
    return f"{what} {len(image_ids)} {'image' if len(image_ids) == 1 else 'images'}: {shown}"
