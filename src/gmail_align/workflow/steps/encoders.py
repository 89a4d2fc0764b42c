"""Steps of encoders: filtering, features, alignment, and what an encoder is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from gmail_align.alignment.config import AlignConfig
from gmail_align.artifacts import Artifact
from gmail_align.data.protocols import Task
from gmail_align.report.gap_names import GAP_MEASURES
from gmail_align.report.names import ACCURACIES, RECALLS
from gmail_align.synthesis.config import FilterConfig
from gmail_align.workflow.steps.data import World
from gmail_align.workflow.work import Model, Step, Work, not_identity

if TYPE_CHECKING:
    from gmail_align.data.labels import Labels
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.evaluation.zeroshot import ClassFeatures

_OF_CLASSES: Final = ("transfer", "transfer_real", *(n for n in GAP_MEASURES if "class" in n))
"""Measures of a gap that need the classes of both sets, which pairs do not have."""


@dataclass(frozen=True, eq=False)
class Filtered(Step):
    """Generated images without poor ones; captions may have got the image of another."""

    kind = "generated"
    what = "generated images that pass the filters"
    images: Step
    settings: FilterConfig
    judge: Model | None

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.synthesis.filters import filter_images

        encoder = None if self.judge is None else open_encoder(work, self.judge)
        filter_images(self.settings, work.get(self.images), [], out, encoder)


@dataclass(frozen=True, eq=False)
class ImageFeatures(Step):
    """Features of images by one route of an encoder."""

    kind = "features"
    what = "features of {side} images by the {route} route"
    images: Step
    encoder: Step | Model
    route: str
    of: Step | None = None
    """Captions (or pairs) whose images alone are embedded; None is all."""
    side: Literal["real", "generated"] = "real"
    batch_size: int = not_identity(64)

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.encoders.route import Route
        from gmail_align.features.cache import Cache
        from gmail_align.features.run import extract_images

        encoder, images = open_encoder(work, self.encoder), work.get(self.images)
        cache, route = Cache(work.cache, work.cache_limit), Route(self.route)
        if self.of is None:
            cache.extract_images(images, encoder, route, out, batch_size=self.batch_size)
            return
        ids = image_ids(work.get(self.of), self.side)
        pixels = cache.pixels(images, encoder.preprocess, ids)
        extract_images(
            images, encoder, route, out, ids=ids, batch_size=self.batch_size, pixels=pixels
        )


@dataclass(frozen=True, eq=False)
class TextFeatures(Step):
    """Features of captions."""

    kind = "features"
    what = "features of captions by the {route} route"
    captions: Step
    encoder: Step | Model
    route: str = "frozen"

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.encoders.route import Route
        from gmail_align.features.run import extract_texts

        encoder = open_encoder(work, self.encoder)
        extract_texts(work.get(self.captions), encoder, out, route=Route(self.route))


@dataclass(frozen=True, eq=False)
class Aligned(Step):
    """An encoder whose generated images are aligned to real ones."""

    kind = "encoders"
    trains = True
    what = "encoder aligned from {base.name}, seed {seed}"
    pairs: Step
    real: Step
    generated: Step
    base: Model
    settings: AlignConfig
    seed: int
    uses_real: bool = not_identity(True)
    """Whether real images have a say in it."""
    uses_generated: bool = not_identity(True)
    """Whether generated images have a say in it."""

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.alignment.run import Sources, align

        sources = Sources(*(work.get(step) for step in (self.pairs, self.real, self.generated)))
        base = Path(self.base.path)
        cache, limit = work.cache, work.cache_limit
        align(self.settings, sources, base, out, seed=self.seed, cache=cache, cache_limit=limit)


@dataclass(frozen=True, eq=False)
class Gap(Step):
    """The gap between real and generated images, on pairs."""

    kind = "gaps"
    what = "gap between real and generated images"
    pairs: Step
    real: Step
    generated: Step
    texts: Step | None = None
    """Features of the captions, for the cosines of images and captions."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the numbers in it."""
        lacking = () if self.texts else tuple(n for n in GAP_MEASURES if n.startswith("text_"))
        return tuple(name for name in GAP_MEASURES if name not in (*_OF_CLASSES, *lacking))

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.data.pairs import read_pairs
        from gmail_align.features.store import open_features
        from gmail_align.gap.feature_sets import Annotations
        from gmail_align.gap.run import measure_gap

        pairs = read_pairs(work.get(self.pairs))
        known = None
        if self.texts is not None:
            texts = open_features(work.get(self.texts))
            known = Annotations(texts=texts, captions=[row.caption_id for row in pairs])
        rows = [(row.real_image_id, row.generated_image_id) for row in pairs]
        measure_gap(work.get(self.real), work.get(self.generated), rows, out, annotations=known)


@dataclass(frozen=True, eq=False)
class Retrieval(Step):
    """Retrieval between images and captions."""

    kind = "results"
    what = "retrieval: {protocol}"
    task: ClassVar[Task] = "retrieval"
    measures = tuple(RECALLS)
    images: Step
    texts: Step
    captions: Step
    protocol: str
    subset: bool

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.evaluation.retrieval import evaluate_retrieval

        evaluate_retrieval(
            work.get(self.images),
            work.get(self.texts),
            work.get(self.captions),
            out,
            protocol=self.protocol,
            subset=self.subset,
        )


@dataclass(frozen=True, eq=False)
class ZeroShot(Step):
    """Zero-shot classification of images."""

    kind = "results"
    what = "zero-shot classification: {protocol}"
    task: ClassVar[Task] = "zeroshot"
    measures = ACCURACIES
    images: Step
    encoder: Step | Model
    classes: Step
    """Classes of an import, or a tabletop world."""
    protocol: str
    subset: bool
    set_name: str = ""
    """Class set of the tabletop world."""

    def _make(self, work: Work, out: Path) -> None:
        from gmail_align.data.labels import Labels, class_prompts, open_labels
        from gmail_align.evaluation.zeroshot import embed_classes, evaluate_zeroshot
        from gmail_align.features.store import open_features

        encoder = open_encoder(work, self.encoder)
        images, classes = work.get(self.images), work.get(self.classes)
        if isinstance(self.classes, World):
            labels, prompts = _tabletop_classes(encoder, classes, self.classes.split, self.set_name)
        else:
            known = open_labels(classes.folder).classes
            ids = open_features(images).ids
            labels = Labels({name: known[name] for name in ids if name in known})
            texts = class_prompts(classes.path("classes.json"), self.protocol)
            prompts = embed_classes(encoder, texts, images)
        evaluate_zeroshot(images, labels, prompts, out, protocol=self.protocol, subset=self.subset)


def _tabletop_classes(
    encoder: GmailEncoder, world: Artifact, split: str, name: str
) -> tuple[Labels, ClassFeatures]:
    """Return the class of each scene that has one, and features of the classes' prompts."""
    from gmail_align.data.labels import Labels
    from gmail_align.evaluation.zeroshot import ClassFeatures
    from gmail_align.tabletop.classes import class_sets
    from gmail_align.tabletop.run import class_features, read_scenes, zero_shot_labels

    classes = class_sets()[name]
    numbers = zero_shot_labels(read_scenes(world, split), name)
    labels = Labels({image: classes[number] for image, number in numbers.items()})
    return labels, ClassFeatures(classes, class_features(encoder, name))


def fetch_model(model: Model) -> None:
    """Fetch a model by its hub id.

    Raises:
        ModelError: the hub does not have it.
    """
    if model.part == "diffusion":
        from gmail_align.synthesis.weights import find_pipeline

        find_pipeline(model.path, model.revision)
    else:
        from gmail_align.encoders.folder import find_folder

        find_folder(f"{model.path}@{model.revision}" if model.revision else model.path)


def open_encoder(work: Work, encoder: Step | Model) -> GmailEncoder:
    """Return a model or an aligned encoder, on the device that there is."""
    if isinstance(encoder, Model):
        return _encoder(encoder.path, encoder.content)
    return _encoder(str(work.get(encoder).folder), encoder.key)


@lru_cache(maxsize=1)
def _encoder(folder: str, content: str) -> GmailEncoder:
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.runtime import resolve_device

    return GmailEncoder.from_pretrained(Path(folder)).to(resolve_device("auto"))


def image_ids(artifact: Artifact, side: str) -> list[str]:
    """Return the ids of the images that captions or pairs name, each once."""
    from gmail_align.data.captions import iter_captions
    from gmail_align.data.pairs import iter_pairs

    if artifact.kind == "captions":
        return list(dict.fromkeys(row.image_id for row in iter_captions(artifact)))
    pairs = iter_pairs(artifact)
    return list(dict.fromkeys(getattr(row, f"{side}_image_id") for row in pairs))
