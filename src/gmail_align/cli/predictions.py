"""``gmail-align evaluate captions``, ``evaluate answers`` and ``compare``: what models said."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gmail_align.cli.options import Device, File, Folder, Model, Protocol
from gmail_align.cli.shared import Scoring, Shared, command, result_lines
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ConfigError
from gmail_align.metrics.scienceqa import Rule
from gmail_align.progress import say

if TYPE_CHECKING:
    from gmail_align.evaluation.answers import Reading
    from gmail_align.evaluation.captions import CaptionOptions
    from gmail_align.evaluation.clipscore import ClipEncoder, ClipFiles
    from gmail_align.items import Items
    from gmail_align.metrics.caption_scores import WordVectors


@dataclass(frozen=True)
class ReadingOptions:
    """How answers are read out of responses.

    Attributes:
        rule: How ScienceQA's letters are read: zeroshot (the letter alone, or 'B.' first) or
            finetuned (also 'The answer is B.').
        compat: Follow the published scripts. MMMU's draws a choice if it can read none, and takes a
            table of id to answer as read. In ScienceQA's a missing response is wrong.
        draw_seed: Seed of MMMU's random choices under --compat.
    """

    rule: Rule = "zeroshot"
    compat: bool = False
    draw_seed: int = 42

    def reading(self) -> Reading:
        """Return how answers are read."""
        from gmail_align.evaluation.answers import Reading

        return Reading(self.rule, self.compat, self.draw_seed)


@dataclass(frozen=True)
class ScoredBy:
    """What predictions are scored by.

    Attributes:
        references: Human captions, if A and B are files of captions.
        answers: Right answers, if A and B are files of responses.
        protocol: Name of the protocol, if A and B are files of predictions.
    """

    references: Path | None = None
    answers: Path | None = None
    protocol: str | None = None


@dataclass(frozen=True)
class CaptionMetricOptions:
    """Which caption metrics are computed, and with what.

    Attributes:
        metrics: Metrics to compute, as in BLEU4,CIDEr; may be repeated; by default all.
        word_vectors: Word vectors for WMD: word2vec (.bin or text) or GloVe; or the word
            'references' to train them on the human captions, as --metrics WMD does by default.
        raw_vectors: WMD: keep the length of the word vectors.
        partial: Score only images that every captioner predicted.
    """

    metrics: Annotated[list[str], "--metrics --metric"] | None = None
    word_vectors: Annotated[str, "FILE"] | None = None
    raw_vectors: bool = False
    partial: bool = False

    def names(self) -> list[str] | None:
        """Return the metrics by their names in any case, once each; None for all."""
        from gmail_align.metrics.caption_scores import CAPTION_METRICS

        known = {name.lower(): name for name in CAPTION_METRICS}
        given = [name.strip() for text in self.metrics or () for name in text.split(",")]
        names = [known.get(name.lower(), name) for name in given if name]
        return list(dict.fromkeys(names)) or None

    def vectors(self) -> WordVectors | None:
        """Return what WMD measures with; None without it.

        Raises:
            ConfigError: ``--raw-vectors`` is given alone.
            DataError: the file cannot be read as word vectors.
        """
        from gmail_align.metrics.caption_scores import WordVectors

        given = self.word_vectors
        if given is None and "WMD" in (self.names() or ()):
            say("WMD: no --word-vectors, so they are trained on the human captions")
            given = "references"
        if given is None:
            if self.raw_vectors:
                raise ConfigError("--raw-vectors needs --word-vectors: name them")
            return None
        return WordVectors.open(given, normalise=not self.raw_vectors)


@dataclass(frozen=True)
class ClipOptions:
    """Where CLIPScore's features come from.

    Attributes:
        clip_images: CLIPScore: features of the images, one row for each prediction.
        clip_captions: CLIPScore: features of 'A photo depicts CAPTION', one row for each
            prediction.
        clip_references: RefCLIPScore: features of 'A photo depicts REFERENCE', in the order of the
            file.
        encoder: CLIPScore: the encoder that computes the features, from --images.
        images: CLIPScore: the images, for --encoder.
    """

    clip_images: Annotated[Path, "F.npy"] | None = None
    clip_captions: Annotated[Path, "F.npy"] | None = None
    clip_references: Annotated[Path, "F.npy"] | None = None
    encoder: Model | None = None
    images: Folder | None = None
    device: Device = "auto"

    def source(self) -> ClipFiles | ClipEncoder | None:
        """Return where the features come from; None without CLIPScore.

        Raises:
            ConfigError: what is given is not enough, or too much.
        """
        from gmail_align.evaluation.clipscore import ClipEncoder, ClipFiles

        files = (self.clip_images, self.clip_captions, self.clip_references)
        if self.encoder is not None or self.images is not None:
            if any(files) or self.encoder is None or self.images is None:
                raise ConfigError("CLIPScore takes --encoder and --images, or --clip-... features")
            return ClipEncoder(
                str(model_path(self.encoder, "clip")), self.images, device=self.device
            )
        if not any(files):
            return None
        if self.clip_images is None or self.clip_captions is None:
            raise ConfigError("CLIPScore needs both --clip-images and --clip-captions")
        return ClipFiles(self.clip_images, self.clip_captions, self.clip_references)


@command
def captions(
    shared: Shared,
    systems: Annotated[list[str] | None, "[NAME=]PATH"] = None,
    /,
    *,
    references: Path,
    chosen: CaptionMetricOptions,
    clip: ClipOptions,
    scoring: Scoring,
    predictions: Path | None = None,
    protocol: Protocol = "captions",
) -> None:
    """Score captions: BLEU, METEOR, ROUGE-L, CIDEr, SPICE, WMD and CLIPScore, with intervals.

    Every image of the references needs a prediction, unless --partial is given.

    Args:
        references: Human captions: COCO's annotations, or a folder of captions.
        systems: Predictions of one or several captioners: folders, COCO results, or JSON lines.
            Several are compared.
        predictions: Predictions of one captioner, in place of [NAME=]PATH.
    """
    if predictions is not None and chosen.metrics and systems:  # --metrics BLEU4 CIDEr
        chosen = replace(chosen, metrics=[*chosen.metrics, *systems])
        systems = None
    if bool(systems) == (predictions is not None):
        raise ConfigError("give predictions once: --predictions PATH, or [NAME=]PATH ...")
    named = named_paths(systems or [f"captioner={predictions}"])
    source = clip.source()
    if shared.dry_run:
        plan = {"systems": named, "references": references, "metrics": chosen.names()}
        shared.show_plan("evaluate captions", scoring.out, **plan)
        return
    from gmail_align.evaluation.captions import evaluate_captions

    options = caption_options(chosen, protocol, scoring, source)
    paired = [(later, earlier) for earlier, later in pairwise(named)]
    shared.show_result(evaluate_captions(named, references, scoring.out, options, paired=paired))


@command
def answers(
    shared: Shared,
    protocol: str,
    predictions: File,
    answers: Path,
    reading: ReadingOptions,
    scoring: Scoring,
) -> None:
    """Score answers: accuracy over all questions and by subject, and the count of unreadable ones.

    Args:
        protocol: scienceqa_img_test, scienceqa_test or mmmu_val; or a label for a set of your own.
        predictions: Responses: a table of id to text, a list of records, or JSON lines.
        answers: Right answers: ScienceQA's problems.json, a table of id to letter, MMMU's
            dictionary, or a folder of imported questions.
    """
    if shared.dry_run:
        plan = {"predictions": predictions, "answers": answers, "protocol": protocol}
        shared.show_plan("evaluate answers", scoring.out, **plan)
        return
    from gmail_align.data.protocols import PROTOCOLS
    from gmail_align.evaluation.answers import evaluate_answers

    if protocol not in PROTOCOLS:
        say(f"{protocol!r} is not a known protocol: it is kept as a label, and no count is checked")
    result = evaluate_answers(
        predictions,
        answers,
        scoring.out,
        protocol=protocol,
        subset=scoring.subset,
        reading=reading.reading(),
        seed=scoring.seed,
    )
    shared.show_result(result)


@command
def compare(
    shared: Shared,
    results: Annotated[list[Path], "A B..."],
    /,
    scored_by: ScoredBy,
    chosen: CaptionMetricOptions,
    reading: ReadingOptions,
    scoring: Scoring,
) -> None:
    """Say how much better A is than each B in every metric, on the same images or questions.

    A and B are folders that `gmail-align evaluate ... --out` made. Or they are files of
    predictions, which --references (captions) or --answers score. Each interval is that of the
    paired difference. With several B, --out gets a folder for each.

    Args:
        results: Folders of results, or predictions; the first is compared with each of the others.
    """
    if len(results) < 2:
        raise ConfigError("one result alone cannot be compared: name two or more")
    if scored_by.references is not None and scored_by.answers is not None:
        raise ConfigError("--references are for captions and --answers for responses: give one")
    if shared.dry_run:
        shared.show_plan("compare", scoring.out, a=results[0], b=results[1:])
        return
    from gmail_align.evaluation.answers import evaluate_answers
    from gmail_align.evaluation.captions import evaluate_captions
    from gmail_align.evaluation.compare import compare_items

    lost: Mapping[str, str] = {}
    if scored_by.references is not None:
        options = caption_options(chosen, scored_by.protocol or "captions", scoring)
        named = {f"{chr(65 + n)} ({path})": path for n, path in enumerate(results)}
        scored = evaluate_captions(named, scored_by.references, None, options)
        items, lost = list(scored.items.values()), scored.unavailable
    elif scored_by.answers is not None:
        key, protocol, read = scored_by.answers, scored_by.protocol or "answers", reading.reading()
        every = [
            evaluate_answers(path, key, protocol=protocol, subset=scoring.subset, reading=read)
            for path in results
        ]
        items = [scored.items[""] for scored in every]
    else:
        items = _kept_items(results, scored_by.protocol)
    metrics, several = chosen.names(), len(results) > 2
    seed, bodies, lines = scoring.seed, [], []
    for path, other in zip(results[1:], items[1:], strict=True):
        out = scoring.out / path.stem if scoring.out is not None and several else scoring.out
        result = compare_items(items[0], other, out, metrics=metrics, unavailable=lost, seed=seed)
        bodies.append(result.to_json())
        lines += [f"A {results[0]}, B {path}", *result_lines(bodies[-1])]
    if several:
        shared.show({"comparisons": bodies}, "\n".join(lines))
    else:
        shared.show_result(result)


def caption_options(
    chosen: CaptionMetricOptions,
    protocol: str,
    scoring: Scoring,
    clip: ClipFiles | ClipEncoder | None = None,
) -> CaptionOptions:
    """Return how captions are scored."""
    from gmail_align.evaluation.captions import CaptionOptions

    return CaptionOptions(
        protocol,
        scoring.subset,
        chosen.names(),
        chosen.partial,
        chosen.vectors(),
        clip,
        scoring.seed,
    )


def named_paths(texts: Sequence[str]) -> dict[str, Path]:
    """Read ``NAME=PATH`` or ``PATH``, whose name is that of the file or folder.

    Raises:
        ConfigError: two have one name.
    """
    named: dict[str, Path] = {}
    for text in texts:
        name, equals, after = text.partition("=")
        path = Path(after if equals else text)
        key = name if equals else os.path.basename(os.path.realpath(path))
        if key in named:
            raise ConfigError(f"two predictions are named {key!r}: name them, as in a={path}")
        named[key] = path
    return named


def _kept_items(paths: Sequence[Path], protocol: str | None) -> list[Items]:
    from gmail_align.items import read_items

    for path in paths:
        if path.suffix in (".json", ".jsonl"):
            raise ConfigError(
                f"{path} is not a folder of a result: give what scores these predictions, "
                "--references (captions) or --answers"
            )
    if protocol is not None:
        raise ConfigError("results have a --protocol of their own: leave it out")
    return [read_items(path) for path in paths]
