"""The stages: from a data set to an aligned encoder, a captioner and an export."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmail_align.api.places import (
    ModelPlace,
    Place,
    artifact_of,
    config_of,
    model_of,
    open_encoder,
    place_of,
)
from gmail_align.artifacts import Artifact
from gmail_align.errors import ConfigError

if TYPE_CHECKING:
    from gmail_align.captioning.inputs import CaptionedImages


def write_tabletop(out: str | os.PathLike[str], images: Mapping[str, int]) -> Artifact:
    """Draw scenes of the tabletop world: images and captions in COCO's layout.

    Args:
        out: Folder of the world.
        images: Name of a split -> how many scenes it gets.

    Example:
        >>> write_tabletop("world", {"train": 24, "test": 8}).counts["images"]
        32
    """
    from gmail_align.tabletop.run import make_world

    return make_world(images, Path(out))


def import_data(
    importer: str, options: Mapping[str, Any] | str | os.PathLike[str], out: str | os.PathLike[str]
) -> dict[str, Artifact]:
    """Read a data set into artifacts, by what they hold: ``captions``, ``images``, ``classes``, ...

    Args:
        importer: Its name, as in ``gmail-align import --help``.
        options: The importer's own options, and those of every import (``convert``, ``protocol``,
            ``subset``, ``limit_quarantine``); or a path, the source that stands alone.
        out: Folder that gets ``captions/``, ``images/`` and the like.

    Raises:
        ConfigError: the importer or an option does not exist.
        DataError: the data cannot be read, or too much of it is broken.

    Example:
        >>> files = {"annotations": "world/captions_train.json", "images": ["world/images"]}
        >>> real = import_data("coco", files, "real")
        >>> real["captions"].counts["captions"], real["images"].counts["images"]
        (120, 24)
    """
    from gmail_align.importing.options import ImportOptions
    from gmail_align.importing.run import import_data as run

    if not isinstance(options, Mapping):
        options = {"source": options}
    shared = {key: options[key] for key in ImportOptions.__dataclass_fields__ if key in options}
    own = {key: value for key, value in options.items() if key not in shared}
    return run(importer, own, Path(out), ImportOptions(**shared))


def choose_captions(
    captions: Place, out: str | os.PathLike[str], *, each: int = 1, seed: int = 0
) -> Artifact:
    """Keep at most ``each`` captions of every image; a hash of the seed decides which.

    Example:
        >>> choose_captions("real/captions", "chosen").counts["captions"]
        24
    """
    from gmail_align.data.subsets import choose_captions as run

    return run(artifact_of(captions, "captions"), each, Path(out), seed=seed)


def synthesize(
    captions: Place,
    out: str | os.PathLike[str],
    *,
    model: ModelPlace = "tabletop",
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Artifact:
    """Generate an image for every caption.

    Args:
        captions: The captions.
        out: Folder of the images.
        model: A diffusers pipeline: its folder or its id on the Hugging Face hub.
        preset: Settings of a known generator, such as ``sd2``.
        settings: Keys of ``SynthesisConfig``, on top of the preset.

    Raises:
        ConfigError: a key or a value is wrong.
        ModelError: the pipeline cannot be loaded.

    Example:
        >>> fast = {"steps": 4, "scheduler": "dpmpp"}
        >>> synthesize("chosen", "generated", settings=fast).counts["images"]
        24
    """
    from gmail_align.synthesis.config import SynthesisConfig
    from gmail_align.synthesis.run import synthesize as run

    keys = {**(settings or {}), "model": str(model_of(model, "diffusion"))}
    return run(
        config_of(SynthesisConfig, preset, keys), artifact_of(captions, "captions"), Path(out)
    )


def pair(captions: Place, real: Place, generated: Place, out: str | os.PathLike[str]) -> Artifact:
    """Pair the real image of each caption with the images generated from it.

    Raises:
        DataError: a caption does not have its images.

    Example:
        >>> pair("chosen", "real/images", "generated", "pairs").counts["pairs"]
        24
    """
    from gmail_align.data.pairs import make_pairs

    images = (artifact_of(real, "images"), artifact_of(generated, "images"))
    return make_pairs(artifact_of(captions, "captions"), *images, Path(out))


def align(
    pairs: Place,
    real: Place,
    generated: Place,
    out: str | os.PathLike[str],
    *,
    base: ModelPlace = "tabletop",
    preset: str = "gmail",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Artifact:
    """Align an encoder to generated images (GMAIL, Sec. 3 and Eq. 1).

    Held-out pairs pick the step. If no step beats the plain base, the encoder says so
    (``applied: false``) and is the plain base.

    Args:
        pairs: Which generated image belongs to which real one.
        real: The real images.
        generated: The generated images.
        out: Folder of the encoder.
        base: Folder or hub id of a CLIP, Long-CLIP, SigLIP or SynCLR.
        preset: ``gmail``, ``eq1_only``, ``lora_only`` (the control), ...
        settings: Keys of ``AlignConfig``, on top of the preset.
        seed: Seed of the adapter, the held-out part and the batches.

    Raises:
        ConfigError: a key or a value is wrong.
        DataError: there are too few real images, or a pair lacks an image.
        ModelError: the base is not such a model.
        TrainingError: the loss is not finite.

    Example:
        >>> quick = {"batch_size": 8, "optim.steps": 2}
        >>> align("pairs", "real/images", "generated", "encoder", settings=quick).kind
        'encoder'
    """
    from gmail_align.alignment.config import AlignConfig
    from gmail_align.alignment.run import Sources
    from gmail_align.alignment.run import align as run

    sources = Sources(
        artifact_of(pairs, "pairs"), artifact_of(real, "images"), artifact_of(generated, "images")
    )
    config = config_of(AlignConfig, preset, settings)
    return run(config, sources, model_of(base, "clip"), Path(out), seed=seed)


def extract(
    source: Place,
    out: str | os.PathLike[str],
    *,
    encoder: ModelPlace = "tabletop",
    route: str = "frozen",
) -> Artifact:
    """Compute the features of images or captions, and keep them.

    Args:
        source: Images, captions or pairs (of which the captions are read).
        out: Folder of the features.
        encoder: An aligned encoder or a plain base.
        route: The weights that images pass through. Captions take the route of the images that
            they are compared with.

    Raises:
        ConfigError: the route is unknown.
        ModelError: the encoder cannot be loaded.

    Example:
        >>> extract("real/images", "features/real").counts["rows"]
        24
        >>> extract("generated", "features/raw").counts["rows"]
        24
        >>> aligned = extract("generated", "features/aligned", encoder="encoder", route="generated")
        >>> aligned.counts["rows"], extract("real/captions", "features/texts").counts["rows"]
        (24, 120)
    """
    from gmail_align.encoders.route import parse_route
    from gmail_align.features.run import extract_images, extract_texts

    opened, model, way = artifact_of(source), open_encoder(encoder), parse_route(route)
    if opened.kind == "images":
        return extract_images(opened, model, way, Path(out))
    return extract_texts(opened, model, Path(out), route=way)


def align_features(
    real: Place,
    generated: Place,
    out: str | os.PathLike[str],
    *,
    pairs: str | os.PathLike[str] | None = None,
    classes: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Artifact:
    """Learn the generated head alone, on features of any encoder.

    ``generated.npy`` in the artifact holds the aligned rows. Held-out real images decide whether
    the head, the mean shift or nothing is applied; ``manifest["notes"]["message"]`` says why.

    Args:
        real: Features of real images: an artifact, or a ``.npy`` file of shape (n, d).
        generated: Features of generated images by the same encoder.
        out: Folder of the head.
        pairs: A ``.npy`` file of integers (pairs, 2): the real and the generated row of each.
        classes: In place of pairs: files with the class of each real and each generated row.
        settings: Keys of ``FeatureAlignConfig``.
        seed: Seed of the held-out parts, the head and the batches.

    Raises:
        ConfigError: a key is wrong, or neither pairs nor classes are given.
        DataError: a file cannot be used, or there is too little to hold out.

    Example:
        >>> import numpy as np
        >>> np.save("rows.npy", [[row, row] for row in range(24)])
        >>> quick = {"optim.steps": 2, "batch_size": 8, "folds": 2}
        >>> made = align_features(
        ...     "features/real", "features/raw", "head", pairs="rows.npy", settings=quick
        ... )
        >>> made.counts["generated"]
        24
    """
    from gmail_align.alignment.feature_config import FeatureAlignConfig
    from gmail_align.alignment.feature_data import FeatureSources
    from gmail_align.alignment.feature_run import align_features as run

    joined = [None if one is None else Path(one) for one in (pairs, *(classes or (None, None)))]
    sources = FeatureSources(place_of(real), place_of(generated), *joined)
    return run(config_of(FeatureAlignConfig, None, settings), sources, Path(out), seed=seed)


def train_captioner(
    kind: str,
    features: Place,
    captions: Place,
    out: str | os.PathLike[str],
    *,
    language_model: ModelPlace = "tabletop",
    validation: CaptionedImages | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Artifact:
    """Train a captioner on features and the captions that belong to them.

    Args:
        kind: ``clipcap``, which reads image features; or ``ifcap``, which reads text features.
        features: The features.
        captions: Their captions, or their pairs.
        out: Folder of the captioner.
        language_model: A causal language model of transformers.
        validation: Held-out features and captions, which pick the step.
        settings: Keys of the captioner's configuration.
        seed: Seed of the weights and the batches.

    Raises:
        ConfigError: the kind is unknown, or a key is wrong.

    Example:
        >>> quick = {"batch_size": 8, "optim.steps": 2, "optim.warmup": 0}
        >>> train_captioner(
        ...     "clipcap", "features/aligned", "pairs", "captioner", settings=quick
        ... ).kind
        'captioner'
    """
    from gmail_align.captioning.inputs import CaptionedImages, CaptionerData, EmbeddedCaptions
    from gmail_align.captioning.kinds import CAPTIONERS
    from gmail_align.captioning.training import train_captioner as run

    if kind not in CAPTIONERS:
        raise ConfigError(f"there is no captioner {kind!r}; use one of {', '.join(CAPTIONERS)}")
    opened, texts = artifact_of(features, "features"), artifact_of(captions)
    config = config_of(CAPTIONERS[kind].config, None, settings)
    if config.reads_texts:
        data = CaptionerData(texts=EmbeddedCaptions(texts, opened), validation=validation)
    else:
        data = CaptionerData((CaptionedImages(opened, texts),), validation=validation)
    return run(config, data, model_of(language_model, "gpt2"), Path(out), seed=seed)


def predict_captions(
    captioner: Place,
    features: Place,
    out: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write one caption for every image of a feature store.

    Args:
        captioner: What :func:`train_captioner` made.
        features: Image features.
        out: Folder of the predictions.
        settings: Keys of ``PredictConfig``, such as ``beam``.

    Example:
        >>> predict_captions("captioner", "features/real", "captions").counts
        {'images': 24}
    """
    from gmail_align.captioning.config import PredictConfig
    from gmail_align.captioning.predict import predict_captions as run

    config = config_of(PredictConfig, None, settings)
    return run(
        artifact_of(captioner, "captioner"), artifact_of(features, "features"), Path(out), config
    )


def export(
    encoder: ModelPlace, out: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None
) -> Artifact:
    """Write one route of an encoder in a format that works without gmail-align.

    Args:
        encoder: An aligned encoder or a plain base.
        out: Folder of the export.
        settings: Keys of ``ExportConfig``: ``format`` and ``route``.

    Raises:
        ModelError: the format cannot hold this encoder.

    Example:
        >>> export("encoder", "exported", settings={"format": "hf", "route": "frozen"}).kind
        'export'
    """
    from gmail_align.export.config import ExportConfig
    from gmail_align.export.run import export as run

    return run(config_of(ExportConfig, None, settings), model_of(encoder, "clip"), Path(out))
