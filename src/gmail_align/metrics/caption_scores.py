"""Caption metrics as COCO's evaluation defines them, with intervals over images.

BLEU, METEOR, ROUGE-L, CIDEr and SPICE come from pycocoevalcap, one scorer at a time; the slow ones
run beside the others. Values are 0..1; CIDEr is the tools' CIDEr-D, where 1.08 is a paper's 108.
Papers print the others times 100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from gmail_align.errors import GmailAlignError, UserError, listed
from gmail_align.metrics.bootstrap import Estimate, Values
from gmail_align.metrics.clipscore import ClipFeatures, clip_score, ref_clip_score
from gmail_align.metrics.java import tokenize
from gmail_align.metrics.meteor import meteor_process
from gmail_align.metrics.ngrams import bleu_counts, cider, rouge_l
from gmail_align.metrics.spice import spice_process
from gmail_align.metrics.statistics import Column, differences, estimates, mean_column
from gmail_align.metrics.wmd import load_word_vectors, train_word_vectors, wmd_similarity

NO_VECTORS: Final = (
    "WMD needs word vectors, and none were given: name a file of word2vec or GloVe vectors "
    "(--word-vectors FILE), or have them trained on the references (--word-vectors references)"
)


class MetricUnavailable(GmailAlignError):
    """A metric that cannot be computed here, and why; the others go on."""


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

    @classmethod
    def open(cls, source: str, *, normalise: bool) -> WordVectors:
        """Read a file of vectors; ``references`` stands for those that are trained there.

        Raises:
            DataError: the file cannot be read as word vectors.
        """
        if source == "references":
            return cls(None, normalise)
        return cls(load_word_vectors(Path(source)), normalise, source)


@dataclass(frozen=True)
class CaptionTask:
    """What a metric scores: everything is in the order of the images.

    Attributes:
        captions: captioner -> one tokenised caption an image.
        references: for each image, its tokenised captions.
        vectors: what WMD measures with.
        clip: what CLIPScore measures with.
    """

    captions: Mapping[str, Sequence[str]]
    references: Sequence[Sequence[str]]
    vectors: WordVectors | None = None
    clip: ClipFeatures | None = None

    def each(
        self, score: Callable[[Sequence[str], Sequence[Sequence[str]]], Values]
    ) -> dict[str, Values]:
        """Return what ``score`` says of each captioner."""
        return {name: score(own, self.references) for name, own in self.captions.items()}

    @cached_property
    def bleu_counts(self) -> dict[str, Values]:
        """The n-gram counts that the four BLEUs share."""
        return self.each(bleu_counts)


@runtime_checkable
class Scorer(Protocol):
    """A running process that scores captions beside the caller."""

    def score(
        self, systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]
    ) -> Future[dict[str, Values]]:
        """Score each captioner in a thread of its own."""


@dataclass(frozen=True)
class CaptionMetric:
    """A metric of captions: either ``compute`` or ``process``.

    Attributes:
        compute: returns each captioner's values, a row an image.
        process: starts a process that does, for what takes long.
        column: turns values into what every image adds to the metric.
        needs_clip: whether it needs features of a CLIP model.
    """

    compute: Callable[[CaptionTask], Mapping[str, Values]] | None = None
    process: Callable[[], AbstractContextManager[Scorer]] | None = None
    column: Callable[[Values], Column] = mean_column
    needs_clip: bool = False


def _bleu(order: int) -> CaptionMetric:
    return CaptionMetric(
        lambda task: task.bleu_counts, column=lambda counts: Column(f"bleu{order}", counts)
    )


def _wmd(task: CaptionTask) -> dict[str, Values]:
    if task.vectors is None:
        raise MetricUnavailable(NO_VECTORS)
    vectors, normalise = task.vectors.vectors, task.vectors.normalise
    if vectors is None:
        vectors = train_word_vectors([text for some in task.references for text in some])
    return task.each(lambda own, human: wmd_similarity(own, human, vectors, normalise=normalise))


def _clip(task: CaptionTask) -> dict[str, Values]:
    if task.clip is None:
        raise MetricUnavailable("CLIPScore needs features of images and captions: give them")
    return {name: clip_score(task.clip.images, own) for name, own in task.clip.captions.items()}


def _ref_clip(task: CaptionTask) -> dict[str, Values]:
    clip = task.clip
    if clip is None or clip.references is None:
        raise MetricUnavailable("RefCLIPScore needs features of the references: give them")
    scores, human, owner = _clip(task), clip.references, clip.owner
    return {
        name: ref_clip_score(scores[name], own, human, owner) for name, own in clip.captions.items()
    }


def _mean_of_defined(values: Values) -> Column:
    return mean_column(np.nan_to_num(values), ~np.isnan(values))


CAPTION_METRICS: Final[Mapping[str, CaptionMetric]] = {
    **{f"BLEU{order}": _bleu(order) for order in (1, 2, 3, 4)},
    "METEOR": CaptionMetric(process=meteor_process, column=lambda rows: Column("meteor", rows)),
    "ROUGE_L": CaptionMetric(lambda task: task.each(rouge_l)),
    "CIDEr": CaptionMetric(lambda task: task.each(cider)),
    "SPICE": CaptionMetric(process=spice_process, column=_mean_of_defined),
    "WMD": CaptionMetric(_wmd),
    "CLIPScore": CaptionMetric(_clip, needs_clip=True),
    "RefCLIPScore": CaptionMetric(_ref_clip, needs_clip=True),
}
"""Name -> metric, in the order of results: to add a metric is to add its function here."""
METRICS: Final = tuple(name for name, one in CAPTION_METRICS.items() if not one.needs_clip)
"""The metrics that need nothing but captions."""


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


def compare_captioners(
    systems: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] | None = None,
    pretokenized: bool = False,
    word_vectors: WordVectors | None = None,
    clip: ClipFeatures | None = None,
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
        metrics: which of `CAPTION_METRICS`; by default all that what is given allows.
        pretokenized: captions are already PTB tokens; needs Java for METEOR and SPICE only.
        word_vectors: what WMD measures with; without, it is unavailable.
        clip: what CLIPScore measures with, in the order of ``references``.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        UserError: image ids differ, a caption is empty, or a metric is unknown.
        MissingExtraError: pycocoevalcap or Java is not installed.
        GmailAlignError: the tokenizer failed. METEOR's or SPICE's failure makes it unavailable
            instead.
    """
    wanted = _wanted(metrics, clip)
    _require_same_images(systems, references)
    unavailable: dict[str, str] = {}
    with ExitStack() as running:
        scorers = _started(wanted, running, unavailable)
        captions, human = _tokens(systems, references, pretokenized=pretokenized)
        task = CaptionTask(captions, human, word_vectors, clip)
        futures = {name: one.score(captions, human) for name, one in scorers.items()}
        table = _computed(wanted, task, unavailable)
        how = {"resamples": resamples, "seed": seed}
        early = {name: estimates(columns, **how) for name, columns in table.items()}
        _collect(futures, table, unavailable)
    results = {}
    for name, columns in table.items():
        late = {metric: column for metric, column in columns.items() if metric not in early[name]}
        estimated = early[name] | estimates(late, **how)  # one seed: the same resamples
        ordered = [metric for metric in wanted if metric in columns]
        scores = {metric: estimated[metric] for metric in ordered}
        kept = {metric: columns[metric] for metric in ordered}
        results[name] = CaptionScores(tuple(references), scores, kept, dict(unavailable))
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
    first, second = {metric: a.columns[metric]}, {metric: b.columns[metric]}
    return differences(first, second, resamples=resamples, seed=seed)[metric]


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


def _wanted(metrics: Sequence[str] | None, clip: ClipFeatures | None) -> list[str]:
    """Return the metrics that are asked for, in the order of the table.

    Who gives features for CLIPScore asks for it.
    """
    names = set(METRICS if metrics is None else metrics)
    if clip is not None:
        names |= {"CLIPScore"} if clip.references is None else {"CLIPScore", "RefCLIPScore"}
    unknown = sorted(names - CAPTION_METRICS.keys())
    if unknown or not names:
        known = ", ".join(CAPTION_METRICS)
        raise UserError(f"no such caption metric: {', '.join(unknown)}; choose from {known}")
    return [name for name in CAPTION_METRICS if name in names]


def _started(
    wanted: Sequence[str], running: ExitStack, unavailable: dict[str, str]
) -> dict[str, Scorer]:
    """Start the processes of the slow metrics; say which cannot be started."""
    scorers = {}
    for name in wanted:
        start = CAPTION_METRICS[name].process
        if start is None:
            continue
        try:
            scorers[name] = running.enter_context(start())
        except GmailAlignError as error:
            unavailable[name] = str(error)
    return scorers


def _computed(
    wanted: Sequence[str], task: CaptionTask, unavailable: dict[str, str]
) -> dict[str, dict[str, Column]]:
    """Return captioner -> metric -> column of the metrics that need no process."""
    table: dict[str, dict[str, Column]] = {name: {} for name in task.captions}
    for name in wanted:
        metric = CAPTION_METRICS[name]
        if metric.compute is None:
            continue
        try:
            for system, values in metric.compute(task).items():
                table[system][name] = metric.column(values)
        except MetricUnavailable as error:
            unavailable[name] = str(error)
    return table


def _collect(
    futures: Mapping[str, Future[dict[str, Values]]],
    table: Mapping[str, dict[str, Column]],
    unavailable: dict[str, str],
) -> None:
    """Wait for the processes, and put their columns into ``table``; say what failed."""
    for metric, future in futures.items():
        try:
            columns = future.result()
        except GmailAlignError as error:
            unavailable[metric] = str(error)
            continue
        for name, values in columns.items():
            table[name][metric] = CAPTION_METRICS[metric].column(values)


def _require_same_images(
    systems: Mapping[str, Mapping[str, str]], references: Mapping[str, Sequence[str]]
) -> None:
    """Refuse anything but one caption and at least one reference for every image."""
    if not references or not systems:
        raise UserError("there is nothing to score: no references or no predictions were given")
    blank = [i for i, some in references.items() if not some or not all(map(str.strip, some))]
    if blank:
        raise UserError(f"references hold no or an empty caption for {listed(blank, 'image')}")
    for name, own in systems.items():
        faults = {
            "no prediction for": [i for i in references if i not in own],
            "no references for": [i for i in own if i not in references],
            "an empty prediction for": [i for i in own if not own[i].strip()],
        }
        told = [f"{what} {listed(images, 'image')}" for what, images in faults.items() if images]
        if told:
            raise UserError(f"{name}: {'; '.join(told)}")
