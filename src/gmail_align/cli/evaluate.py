"""``gmail-align evaluate ...`` of features and encoders: open the inputs, call, and print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gmail_align.api.places import open_encoder
from gmail_align.artifacts import load
from gmail_align.cli.options import Device, EncoderName, Folder, Model, Out, Protocol, Seed, Subset
from gmail_align.cli.shared import Scoring, Shared, command
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ConfigError
from gmail_align.evaluation.config import FinetuneConfig

if TYPE_CHECKING:
    from gmail_align.evaluation.probe import LabelledFeatures

Labels = Annotated[
    Path,
    Field(
        description="The class of each image: JSON (image id to class), a folder of classes that "
        "an import made, integers (Y.npy), or a text file with one class on each line."
    ),
]


@dataclass(frozen=True)
class RequiredScoring:
    """What an evaluation takes that goes on where it was killed, and so needs a folder."""

    out: Out
    subset: Subset = False
    seed: Seed = 0


@dataclass(frozen=True)
class FinetuneStart:
    """The encoder that is fine-tuned.

    Attributes:
        route: Route whose weights the fine-tuning starts from; a plain model has one.
    """

    encoder: EncoderName
    route: Route = Route.REAL


@command
def retrieval(
    shared: Shared,
    images: Annotated[Path, "--images --image-features", "DIR|I.npy"],
    texts: Annotated[Path, "--texts --text-features", "DIR|T.npy"],
    captions: Annotated[Path, "--captions --text-image", "DIR|T2I.npy"],
    scoring: Scoring,
    protocol: Protocol = "retrieval",
    compat: str | None = None,
) -> None:
    """Score retrieval of captions by images and of images by captions.

    Args:
        images: Image features.
        texts: Caption features by the same encoder.
        captions: The captions; for .npy files, the row of I that each row of T describes.
        compat: Score as another evaluator does: clip_benchmark or long_clip.
    """
    if compat is not None:
        from gmail_align.metrics.compat import parse_compat

        parse_compat(compat)
    if shared.dry_run:
        paths = {"images": images, "texts": texts, "captions": captions, "protocol": protocol}
        shared.show_plan("evaluate retrieval", scoring.out, **paths)
        return
    from gmail_align.evaluation.retrieval import evaluate_retrieval

    shared.show_result(
        evaluate_retrieval(
            images,
            texts,
            captions,
            scoring.out,
            protocol=protocol,
            subset=scoring.subset,
            compat=compat,
            seed=scoring.seed,
        )
    )


@command
def zeroshot(
    shared: Shared,
    images: Annotated[Path, "--images --image-features", "DIR|I.npy"],
    labels: Labels,
    scoring: Scoring,
    classes: Annotated[Path, "--classes --class-features", "FILE|C.npy"] | None = None,
    encoder: Model | None = None,
    protocol: Protocol = "zeroshot",
    device: Device = "auto",
) -> None:
    """Score zero-shot classification: overall accuracy and the mean over classes.

    Args:
        images: Image features.
        classes: Prompts of each class as JSON, for --encoder (a known --protocol brings its own);
            or features of shape (classes, dim) or (classes, prompts, dim).
        encoder: The encoder of the images; tabletop is shipped.
    """
    from gmail_align.data.labels import class_prompts, open_labels

    by_file = classes is not None and classes.suffix == ".npy"
    if by_file == (encoder is not None):
        raise ConfigError("give --encoder, or --class-features C.npy: one of the two")
    prompts = None if by_file else class_prompts(classes, protocol)
    if shared.dry_run:
        paths = {"images": images, "labels": labels, "protocol": protocol}
        shared.show_plan("evaluate zeroshot", scoring.out, **paths)
        return
    from gmail_align.evaluation.zeroshot import (
        embed_classes,
        evaluate_zeroshot,
        read_class_features,
    )

    if prompts is None:
        assert classes is not None
        features = read_class_features(classes)
    else:
        features = embed_classes(open_encoder(str(encoder), device), prompts, images)
    result = evaluate_zeroshot(
        images,
        open_labels(labels),
        features,
        scoring.out,
        protocol=protocol,
        subset=scoring.subset,
        seed=scoring.seed,
    )
    shared.show_result(result)


@dataclass(frozen=True)
class Splits:
    """Features of each split, and their labels.

    Attributes:
        train: Features of training images.
        test: Features of test images.
        validation: Features of validation images; by default a fifth of the training images.
        train_labels: Labels of the training images, in place of --labels.
        validation_labels: Labels of the validation images.
        test_labels: Labels of the test images.
    """

    train: Annotated[Path, "DIR|X.npy"]
    test: Annotated[Path, "DIR|X.npy"]
    validation: Annotated[Path, "DIR|X.npy"] | None = None
    labels: list[Labels] | None = None
    train_labels: Annotated[Path, "Y.npy"] | None = None
    validation_labels: Annotated[Path, "Y.npy"] | None = None
    test_labels: Annotated[Path, "Y.npy"] | None = None

    def open(self) -> dict[str, LabelledFeatures | None]:
        """Return train, validation and test.

        Raises:
            ConfigError: a split does not have labels, or labels do not have a split.
            DataError: labels cannot be read.
        """
        from gmail_align.data.labels import open_labels
        from gmail_align.evaluation.probe import LabelledFeatures

        every = open_labels(*self.labels) if self.labels else None
        given = {
            "train": (self.train, self.train_labels),
            "validation": (self.validation, self.validation_labels),
            "test": (self.test, self.test_labels),
        }
        parts: dict[str, LabelledFeatures | None] = {}
        for name, (path, own) in given.items():
            if path is None and own is None:
                parts[name] = None
                continue
            labels = every if own is None else open_labels(own)
            if path is None or labels is None:
                raise ConfigError(f"--{name} and --{name}-labels go together (or give --labels)")
            parts[name] = LabelledFeatures(path, labels)
        return parts


@command
def probe(
    shared: Shared, splits: Splits, scoring: Scoring, protocol: Protocol = "linear_probe"
) -> None:
    """Fit a linear classifier on features; validation images choose the weight decay."""
    if shared.dry_run:
        paths = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        shared.show_plan("evaluate probe", scoring.out, **paths)
        return
    from gmail_align.evaluation.probe import evaluate_probe

    opened = splits.open()
    train, test = opened["train"], opened["test"]
    assert train is not None and test is not None
    result = evaluate_probe(
        train,
        opened["validation"],
        test,
        scoring.out,
        protocol=protocol,
        subset=scoring.subset,
        seed=scoring.seed,
    )
    shared.show_result(result)


@dataclass(frozen=True)
class LabelledImages:
    """Images of each split, and their labels.

    Attributes:
        train: Training images.
        test: Test images.
        validation: Validation images; by default a fifth of the training images.
    """

    train: Folder
    test: Folder
    labels: list[Labels]
    validation: Folder | None = None

    def paths(self) -> dict[str, Path]:
        """Return the folder of each split that is given."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: path for name, path in named.items() if path is not None}


@command
def finetune(
    shared: Shared,
    data: LabelledImages,
    start: FinetuneStart,
    scoring: RequiredScoring,
    config: FinetuneConfig,
    protocol: Protocol = "fine_tune",
) -> None:
    """Fine-tune an encoder's whole vision tower on labelled images, and classify test images.

    The default settings are SynCLR's; small sets need fewer epochs, such as --epochs 20. The epoch
    that does best on validation images is scored on the test images.
    """
    from gmail_align.data.labels import open_labels

    images = {name: load(path, "images") for name, path in data.paths().items()}
    labels = open_labels(*data.labels)
    if shared.dry_run:
        shared.show_plan("evaluate finetune", scoring.out, config, **data.paths())
        return
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.evaluation.finetune import StartingPoint, evaluate_finetune

    encoder = GmailEncoder.from_pretrained(model_path(start.encoder, "clip"))
    shared.show_result(
        evaluate_finetune(
            config,
            images,
            labels,
            StartingPoint(encoder, start.route),
            scoring.out,
            protocol=protocol,
            subset=scoring.subset,
            seed=scoring.seed,
        )
    )
