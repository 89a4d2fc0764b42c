"""Fine-tuning of a whole vision tower for classification: what SynCLR is judged by on ImageNet.

The recipe is SynCLR's (Tian et al. 2023, appendix B.5), without its running average of weights,
random augmentation and dropped paths; the kept step is the best on validation images.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gmail_align.artifacts import Artifact
from gmail_align.data.batches import batch_indices
from gmail_align.data.labels import Labels, class_order
from gmail_align.data.protocols import headline
from gmail_align.encoders.backbones.backbone import Backbone
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.merge import merge
from gmail_align.encoders.route import Route
from gmail_align.errors import UserError
from gmail_align.evaluation.augment import mixed, random_crops, smoothed
from gmail_align.evaluation.config import FinetuneConfig
from gmail_align.evaluation.probe import by_class
from gmail_align.evaluation.zeroshot import accuracy_of
from gmail_align.features.pixels import Pixels, prepare_pixels, read_pixels
from gmail_align.items import Items
from gmail_align.metrics.bootstrap import Values
from gmail_align.metrics.linear_probe import held_out, mean_hit
from gmail_align.results import Input, Result, ResultDraft, begin_result
from gmail_align.runtime import resolve_device, stable_seed
from gmail_align.training.loop import CHECKPOINT, FitReport, fit, pairs_rate

_WORK = "work"
_BATCH = 64


@dataclass(frozen=True)
class StartingPoint:
    """What is fine-tuned: an encoder, and the route whose weights are the start."""

    encoder: GmailEncoder
    route: Route

    @property
    def fingerprint(self) -> str:
        """Identity of the weights."""
        return self.encoder.route_fingerprint(self.route)


def evaluate_finetune(
    config: FinetuneConfig,
    images: Mapping[str, Artifact],
    labels: Labels,
    start: StartingPoint,
    out: Path,
    *,
    protocol: str = "fine_tune",
    subset: bool = False,
    seed: int = 0,
) -> Result:
    """Fine-tune a copy of the encoder's tower and a linear head, and classify the test images.

    A killed run goes on from its last checkpoint. The tuned weights are not kept. The result also
    holds ``best_step``, ``validation`` (the score of every epoch) and the ``recipe``.

    Args:
        config: The recipe.
        images: Images called ``train`` and ``test``, and maybe ``validation``, by which the best
            epoch is chosen; without, a fifth of the training images is held out for that.
        labels: The class of every image.
        start: What is fine-tuned.
        out: Folder of the result.
        protocol: Name kept with the numbers; that of a known protocol of classification asserts the
            counts of the test images.
        subset: Whether the test images are declared a part of that protocol's.
        seed: Of the held-out images, the order of the images and the bootstrap.

    Raises:
        DataError: an image does not have a label, or the counts are not the protocol's.
        UserError: there are fewer than two classes.
        ModelError: the encoder's head has a hidden layer.
        TrainingError: the loss is not finite.
    """
    recipe = config.model_dump(mode="json", exclude={"device"})
    classes = class_order(labels.classes.values())
    n = {"images": images["test"].counts["images"], "classes": len(classes)}
    inputs: dict[str, Input] = {**images, "labels": labels, "start": start}
    result = begin_result(
        out,
        inputs,
        {**recipe, "route": str(start.route)},
        protocol=protocol,
        task="zeroshot",
        n=n,
        subset=subset,
        seed=seed,
    )
    if result.complete is not None:
        return result.complete
    splits = _splits(images, labels, start.encoder, out / _WORK, seed)
    classifier = Classifier(merge(start.encoder, start.route), start.encoder, len(classes))
    classifier.to(resolve_device(config.device))
    report = _fit(classifier, splits, config, protocol, out, seed)
    result.n = {"train": len(splits["train"]), **n}
    details: dict[str, Any] = {**headline(protocol), "recipe": recipe}
    details |= {"best_step": report.best_step, "validation": report.scores}
    return _finish(result, classifier, splits["test"], details)


def score(classifier: Classifier, test: Split) -> Values:
    """Return 1 for each test image that the classifier gets right, else 0."""
    hits: Values = (classifier.classify(test) == test.labels).double().numpy()
    return hits


def _finish(
    result: ResultDraft, classifier: Classifier, test: Split, details: dict[str, Any]
) -> Result:
    """Judge the test images and write the result; what training left behind goes."""
    metrics, columns = accuracy_of(score(classifier, test), test.labels.tolist(), seed=result.seed)
    assert result.draft is not None
    result.draft.path(CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(result.draft.path(_WORK), ignore_errors=True)
    items = {"": Items(result.protocol, tuple(test.pixels.ids), columns)}
    return result.finish(metrics, items=items, details=details)


@dataclass(frozen=True)
class Split:
    """Images of one split, decoded, the rows of them that take part, and their classes."""

    pixels: Pixels
    rows: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Int[Tensor, " k"]) -> Split:
        """Return some of them."""
        return Split(self.pixels, self.rows[places], self.labels[places])


def _splits(
    images: Mapping[str, Artifact],
    labels: Labels,
    encoder: GmailEncoder,
    work: Path,
    seed: int,
) -> dict[str, Split]:
    """Decode every split; hold a fifth of the training images out where none validate."""
    splits = {}
    place = {name: number for number, name in enumerate(class_order(labels.classes.values()))}
    for name, artifact in images.items():
        pixels = read_pixels(prepare_pixels(artifact, encoder.preprocess, work / name))
        own = torch.tensor([place[one] for one in labels.of(pixels.ids)], dtype=torch.int64)
        splits[name] = Split(pixels, torch.arange(len(own)), own)
    train = splits["train"]
    if len(train.labels.unique()) < 2:
        raise UserError("fine-tuning needs training images of at least two classes")
    if "validation" not in splits:
        kept, held = held_out(len(train), seed)
        splits |= {"train": train.take(kept), "validation": train.take(held)}
    return splits


class Classifier(nn.Module):
    """A vision tower and a linear head behind its pooled output; the head begins at zero."""

    def __init__(self, backbone: Backbone, encoder: GmailEncoder, classes: int) -> None:
        super().__init__()
        self.model, self.backbone = backbone.module, backbone
        self.head = nn.Linear(encoder.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.normalise = encoder.preprocess.normalise
        tower = self.model.get_submodule("vision_model").requires_grad_(True)
        self.tower = dict(tower.named_parameters())

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The tower's and the head's parameters, by name."""
        own = {f"tower.{name}": parameter for name, parameter in self.tower.items()}
        own |= {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        return own

    def logits(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c"]:
        """Return one score a class."""
        scores: Tensor = self.head(self.backbone.lean_trunk(pixels))
        return scores

    def batch(self, split: Split, places: Int[Tensor, " k"]) -> Float[Tensor, "k 3 s s"]:
        """Return images, normalised, where the weights are."""
        return self.normalise(split.pixels.array[split.rows[places]].to(self.head.weight.device))

    @torch.no_grad()
    def classify(self, split: Split) -> Int[Tensor, " n"]:
        """Return the class of every image."""
        places = torch.split(torch.arange(len(split)), _BATCH)
        return torch.cat([self.logits(self.batch(split, some)).argmax(1).cpu() for some in places])


def layer_shares(names: list[str], decay: float) -> dict[str, float]:
    """Return the share of the learning rate of each parameter, by the depth that its name says.

    The head and what stands behind the last layer have the whole; each layer ``decay`` of what is
    above it, the embeddings the least (Clark et al. 2020; BEiT's for towers).
    """
    layers = {name: re.search(r"(?:^|\.)layers?\.(\d+)\.", name) for name in names}
    top = 2 + max((int(match[1]) for match in layers.values() if match), default=-1)
    depths = {name: int(match[1]) + 1 if match else top for name, match in layers.items()}
    first = re.compile(r"^tower\.(embeddings|pre_layrnorm)\.")
    depths |= {name: 0 for name in names if first.match(name)}
    return {name: decay ** (top - depth) for name, depth in depths.items()}


def _fit(
    classifier: Classifier,
    splits: Mapping[str, Split],
    config: FinetuneConfig,
    protocol: str,
    out: Path,
    seed: int,
) -> FitReport:
    """Train by the recipe; the best epoch on validation images is kept."""
    train, chosen = splits["train"], splits["validation"]
    order, parameters = stable_seed(seed, "batches"), classifier.trained
    shares = layer_shares(list(parameters), config.layer_decay)
    optim = config.optim(len(train)).model_copy(update={"rate_shares": shares})
    device = classifier.head.weight.device
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    classes = classifier.head.out_features

    def loss(step: int) -> dict[str, Tensor]:
        places = torch.from_numpy(batch_indices(step, config.batch_size, len(train), order))
        pixels = classifier.batch(train, places)
        targets = smoothed(train.labels[places], classes, config.label_smoothing).to(device)
        if config.least_crop is not None:
            pixels = random_crops(pixels, config.least_crop)
        pixels, targets = mixed(pixels, targets, config.mixup, config.cutmix)
        with half:
            scores = classifier.logits(pixels)
        return {"total": cross_entropy(scores.float(), targets)}

    def guard() -> dict[str, float]:
        hits = score(classifier, chosen)
        return {"score": mean_hit(hits, np.asarray(chosen.labels), by_class(protocol))}

    return fit(
        parameters,
        loss,
        optim,
        seed=seed,
        folder=out,
        evaluate=guard,
        label="fine-tuning",
        rate=pairs_rate(config.batch_size),
    )
