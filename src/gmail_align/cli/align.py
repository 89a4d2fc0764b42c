"""Encoders: ``align``, ``extract``, ``train clip``, ``export`` and ``convert``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gmail_align.alignment.config import AlignConfig, ScratchConfig
from gmail_align.alignment.feature_config import FeatureAlignConfig
from gmail_align.api.places import open_encoder
from gmail_align.artifacts import load
from gmail_align.cli.options import Device, EncoderName, File, Folder, Model, Out, Place, Seed
from gmail_align.cli.shared import CacheLimit, Shared, command
from gmail_align.convert.config import ConvertConfig
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.engine import Engine
from gmail_align.errors import ConfigError
from gmail_align.export.config import ExportConfig


@dataclass(frozen=True)
class Kept(CacheLimit):
    """What is kept for other commands.

    Attributes:
        cache: Folder of decoded pixels and frozen features that several commands share.
    """

    cache: Folder | None = None


@dataclass(frozen=True)
class Pairs:
    """Folders of what an encoder is aligned on.

    Attributes:
        pairs: Pairs that `gmail-align pair` made.
        real: The real images.
        generated: The generated images.
        classes: Classes of the real images, which an import made; the guard then measures transfer
            and zero-shot accuracy by class.
    """

    pairs: Folder
    real: Folder
    generated: Folder
    classes: Folder | None = None


@dataclass(frozen=True)
class RowFiles:
    """What joins the rows of two files of features.

    Attributes:
        pairs: Integers of shape (pairs, 2): the real row and the generated row of each pair.
        real_classes: The class of each real row, one on each line.
        generated_classes: The class of each generated row, one on each line.
        texts: Features of texts: one for each pair, or for each class in the order of names.
    """

    pairs: Annotated[Path | None, "P.npy"] = None
    real_classes: File | None = None
    generated_classes: File | None = None
    texts: Annotated[Path | None, "T.npy"] = None


@dataclass(frozen=True)
class Forward:
    """How features are computed and stored.

    Attributes:
        batch_size: Rows of one forward pass.
        dtype: Number type of stored features.
    """

    batch_size: Annotated[int, Field(ge=1)] = 64
    dtype: Literal["float32", "float16"] = "float32"
    device: Device = "auto"


@command
def align(
    shared: Shared,
    data: Pairs,
    base: Model,
    out: Out,
    config: AlignConfig,
    keep: Kept,
    seed: Seed = 0,
) -> None:
    """Align generated images to the frozen features of the real images of their captions.

    Held-out pairs pick the step that is kept. If no step helps, the command says why, and the
    encoder is the plain model by every route.

    Args:
        base: Folder or hub id of a CLIP, Long-CLIP, SigLIP or SynCLR; tabletop is shipped.
    """
    inputs = load(data.pairs, "pairs"), load(data.real, "images"), load(data.generated, "images")
    classes = None if data.classes is None else load(data.classes, "classes")
    if shared.dry_run:
        count = inputs[0].counts["pairs"]
        shared.show_plan("align", out, config, pairs=count, base=base, seed=seed)
        return
    from gmail_align.alignment.run import Sources, align
    from gmail_align.training.distributed import ranks

    sources = Sources(*inputs, classes)
    cache, limit, path = keep.cache, keep.limit, model_path(base, "clip")
    made = align(config, sources, path, out, seed=seed, cache=cache, cache_limit=limit)
    if ranks().first:
        shared.show_artifact(made)


@command
def align_features(
    shared: Shared,
    real: Annotated[Path, "R.npy"],
    generated: Annotated[Path, "G.npy"],
    rows: RowFiles,
    out: Out,
    config: FeatureAlignConfig,
    apply: list[Annotated[Path, "FILE.npy"]] | None = None,
    seed: Seed = 0,
) -> None:
    """Learn a map that brings generated features of any encoder to real ones, and apply it.

    Say what joins the two sides: --pairs, or --real-classes and --generated-classes. Real images
    that are held out in turn decide whether the head, the mean shift or nothing is applied.
    OUT/generated.npy holds the aligned rows of G, and export writes the head for other libraries.

    Args:
        real: Features of real images, or an artifact of features.
        generated: Features of generated images by the same encoder.
        apply: Further generated features to map, into OUT-applied; may be repeated.
    """
    if shared.dry_run:
        shared.show_plan("align features", out, config, real=real, generated=generated, seed=seed)
        return
    from gmail_align.alignment.feature_data import FeatureSources
    from gmail_align.alignment.feature_run import align_features as run

    classes = rows.real_classes, rows.generated_classes
    sources = FeatureSources(real, generated, rows.pairs, *classes, rows.texts)
    made = run(config, sources, out, seed=seed, apply=apply or ())
    notes = made.manifest["notes"]
    described = {"folder": str(made.folder), "counts": made.counts, **notes}
    shared.show(described, f"{made.folder}: {notes['message']}")


@command
def extract(
    shared: Shared,
    source: Folder,
    /,
    encoder: EncoderName,
    out: Out,
    forward: Forward,
    place: Place,
    keep: Kept,
    route: Route | None = None,
) -> None:
    """Compute features of images through one route, or of captions, and keep them.

    Parts of a SLURM array (--shard-of slurm) share --out. The part that ends last finishes it.
    The same command without --shard-of does that too.

    Args:
        source: Images, captions, or pairs, whose captions are read.
        route: Which weights images go through; images need it. For captions it is
            the route of the images that they are compared with, by default real.
    """
    artifact = load(source)
    texts = artifact.kind != "images"
    if route is None and not texts:
        raise ConfigError(f"{source} holds images: name a --route ({', '.join(Route)})")
    way = route or Route.REAL
    if shared.dry_run:
        shared.show_plan("extract", out, source=source, encoder=encoder, route=way)
        return
    engine, part = place.open()
    size, dtype, device = forward.batch_size, forward.dtype, forward.device
    cache = keep.cache
    if cache is not None and (part is not None or engine.on_ray or (engine.workers or 1) > 1):
        raise ConfigError("--cache works in one process: leave out --workers and --shard-of")
    if cache is None and (part is not None or _needs_workers(engine, device)):
        from gmail_align.features.sharded import Extraction, extract_on

        how = Extraction(model_path(encoder, "clip"), way, texts, size, dtype, device)
        shared.show_part(extract_on(engine, artifact, how, out, part), part, out, "features")
        return
    from gmail_align.features.cache import Cache
    from gmail_align.features.run import extract_images, extract_texts

    model = open_encoder(encoder, device)
    if texts:
        made = extract_texts(artifact, model, out, route=way, batch_size=size, dtype=dtype)
    else:
        kept = None if cache is None else Cache(cache, keep.limit)
        extract_all = extract_images if kept is None else kept.extract_images
        made = extract_all(artifact, model, way, out, batch_size=size, dtype=dtype)
    shared.show_artifact(made)


def _needs_workers(engine: Engine, device: str) -> bool:
    """Tell whether other processes than this one do the work."""
    if engine.on_ray or (engine.workers or 1) > 1:
        return True
    return engine.workers is None and device == "auto" and engine.gpus() > 1


@command
def train_clip(
    shared: Shared,
    captions: Folder,
    images: Folder,
    base: Model,
    out: Out,
    config: ScratchConfig,
    seed: Seed = 0,
) -> None:
    """Train a CLIP from random weights on images and captions.

    The result is a plain Hugging Face CLIP, which align takes as its --base.

    Args:
        captions: Captions of the images.
        images: The images.
        base: A CLIP that gives its shape, tokenizer and preprocessing, but not its weights.
    """
    inputs = (load(captions, "captions"), load(images, "images"))
    if shared.dry_run:
        count = inputs[0].counts["captions"]
        shared.show_plan("train", out, config, captions=count, base=base, seed=seed)
        return
    from gmail_align.alignment.scratch import train_clip
    from gmail_align.training.distributed import ranks

    made = train_clip(config, *inputs, model_path(base, "clip"), out, seed=seed)
    if ranks().first:
        shared.show_artifact(made)


@command
def export(
    shared: Shared,
    encoder: str,
    /,
    out: Out,
    config: ExportConfig,
    data: list[Folder] | None = None,
    result: list[Folder] | None = None,
) -> None:
    """Write one route of an encoder in a format that works without gmail-align.

    The library of that format then loads it, and its features are compared with the encoder's.

    Args:
        encoder: An aligned encoder, a plain CLIP, or a head of features.
        data: Training images or pairs that the model card names; may be repeated.
        result: Result that the model card shows; may be repeated.
    """
    if shared.dry_run:
        shared.show_plan("export", out, config, encoder=encoder)
        return
    from gmail_align.export.run import export

    described = [load(folder) for folder in data or []]
    results = [load(folder, "result") for folder in result or []]
    folder = model_path(encoder, "clip")
    shared.show_artifact(export(config, folder, out, data=described, results=results))


@command
def convert(
    shared: Shared, source: str, /, out: Out, config: ConvertConfig, tokenizer: Path | None = None
) -> None:
    """Convert weights to a folder for the --base of align, and check that features stay the same.

    Nothing is unpickled. A file that must run code to be read is refused.

    Args:
        source: Weights of OpenAI, open_clip, Long-CLIP or SynCLR (.pt, .safetensors); or a CLIP
            folder to stretch.
        tokenizer: Tokenizer folder, or OpenAI's bpe_simple_vocab_16e6.txt.gz.
    """
    if shared.dry_run:
        shared.show_plan("convert", out, config, source=source, tokenizer=tokenizer)
        return
    from gmail_align.convert.convert import convert

    shared.show_artifact(convert(source, out, config, tokenizer=tokenizer))
