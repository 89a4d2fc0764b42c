"""Steps of captioners and probes: training, captions, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from gmail_align.captioning.config import CaptionerConfig, PredictConfig
from gmail_align.captioning.kinds import kind_of
from gmail_align.data.protocols import Task
from gmail_align.report.names import ACCURACIES
from gmail_align.workflow.steps.encoders import open_encoder
from gmail_align.workflow.work import Model, Step, Work


@dataclass(frozen=True)
class LearnerImages:
    """What a learner is shown: features of one side of pairs."""

    features: Step
    pairs: Step
    side: Literal["real", "generated"]


@dataclass(frozen=True, eq=False)
class TrainedCaptioner(Step):
    """A captioner; ClipCap reads ``images``, IFCap reads ``captions`` and perhaps images."""

    kind = "captioners"
    what = "captioner, seed {seed}"
    trains = True
    settings: CaptionerConfig
    model: Model
    images: tuple[LearnerImages, ...]
    validation: LearnerImages
    seed: int
    captions: Step | None = None
    texts: Step | None = None
    """Features of the captions."""

    @property
    def words(self) -> str:
        """What is made, in words."""
        return f"{kind_of(self.settings)} {super().words}"

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.captioning.inputs import CaptionedImages, CaptionerData, EmbeddedCaptions
        from gmail_align.captioning.training import train_captioner

        def read(seen: LearnerImages) -> CaptionedImages:
            return CaptionedImages(work.get(seen.features), work.get(seen.pairs))

        texts = None
        if self.captions is not None and self.texts is not None:
            texts = EmbeddedCaptions(work.get(self.captions), work.get(self.texts))
        images = tuple(read(seen) for seen in self.images)
        data = CaptionerData(images, texts, read(self.validation))
        train_captioner(self.settings, data, Path(self.model.path), out, seed=self.seed)


@dataclass(frozen=True, eq=False)
class ContinuedCaptions(Step):
    """Captions that a language model makes of short ones, such as those of classes."""

    kind = "captions"
    what = "captions that {model.name} writes of those of classes"
    captions: Step
    model: Model
    settings: PredictConfig
    each: int

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.captioning.prompts import continue_captions

        captions, model = work.get(self.captions), Path(self.model.path)
        continue_captions(captions, model, out, self.settings, each=self.each)


@dataclass(frozen=True, eq=False)
class PhotoCaptions(Step):
    """Captions that a captioner writes of photos without captions."""

    kind = "captions"
    what = "captions that a captioner writes of photos"
    images: Step
    captioner: Step
    encoder: Model
    settings: PredictConfig
    route: str
    each: int

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.captioning.prompts import caption_photos
        from gmail_align.encoders.route import Route

        caption_photos(
            work.get(self.images),
            work.get(self.captioner),
            open_encoder(work, self.encoder),
            out,
            self.settings,
            route=Route(self.route),
            each=self.each,
        )


@dataclass(frozen=True, eq=False)
class Predictions(Step):
    """Captions of test images."""

    kind = "predictions"
    what = "captions of the test images by a {captioner.words}"
    captioner: Step
    features: Step
    settings: PredictConfig

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.captioning.predict import predict_captions

        captioner, features = work.get(self.captioner), work.get(self.features)
        config = None if self.settings == PredictConfig() else self.settings
        predict_captions(captioner, features, out, config)


@dataclass(frozen=True, eq=False)
class CaptionScores(Step):
    """Scores of the captions of all rows that share their test images."""

    kind = "results"
    what = "caption metrics: {protocol}"
    task: ClassVar[Task] = "captions"
    runs: tuple[Mapping[str, Step], ...]
    """One mapping a seed: row -> predictions."""
    references: Step
    protocol: str
    paired: tuple[tuple[str, str], ...]
    subset: bool
    seed: int
    interval: str = ""
    """How intervals over several seeds are made; it is part of what the scores are."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the numbers in it."""
        from gmail_align.metrics.caption_scores import METRICS

        return METRICS

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.evaluation.captions import CaptionOptions, evaluate_seeds

        evaluate_seeds(
            [{name: work.get(step) for name, step in run.items()} for run in self.runs],
            work.get(self.references),
            out,
            CaptionOptions(self.protocol, self.subset, seed=self.seed),
            paired=self.paired,
        )


@dataclass(frozen=True, eq=False)
class Probe(Step):
    """A linear probe: classes of real test images, learned from labelled features."""

    kind = "probes"
    what = "linear probe, seed {seed}"
    task: ClassVar[Task] = "zeroshot"
    measures = ACCURACIES
    trains = True
    train: Step | None
    """Features of a whole set; None where ``seen`` says what is learnt from."""
    train_classes: Step
    test: Step
    test_classes: Step
    protocol: str
    subset: bool
    seed: int
    seen: tuple[LearnerImages, ...] = ()
    """Sides of pairs; each image has the class of its pair's real image."""

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.data.labels import Labels, open_labels
        from gmail_align.data.pairs import iter_pairs
        from gmail_align.evaluation.probe import LabelledFeatures, evaluate_probe

        labels = open_labels(work.get(self.train_classes).folder)
        sets = [] if self.train is None else [LabelledFeatures(work.get(self.train), labels)]
        for seen in self.seen:
            rows = iter_pairs(work.get(seen.pairs))
            real = {getattr(row, f"{seen.side}_image_id"): row.real_image_id for row in rows}
            own = Labels({name: labels.classes[image] for name, image in real.items()})
            features = work.get(seen.features)  # may hold images that are in none of these pairs
            sets.append(LabelledFeatures(features, own, labelled_only=True))
        evaluate_probe(
            sets,
            None,
            LabelledFeatures(work.get(self.test), open_labels(work.get(self.test_classes).folder)),
            out,
            protocol=self.protocol,
            subset=self.subset,
            seed=self.seed,
        )
