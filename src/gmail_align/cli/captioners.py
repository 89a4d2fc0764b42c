"""Captioners: ``train``, ``predict captions``, ``caption`` and ``convert-clipcap``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gmail_align.api.places import open_encoder
from gmail_align.artifacts import MANIFEST, load
from gmail_align.captioning.config import CaptionerConfig, PredictConfig
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData, load_features
from gmail_align.captioning.kinds import CAPTIONERS
from gmail_align.cli.options import (
    EncoderName,
    File,
    Folder,
    Model,
    Out,
    Seed,
    Settings,
    described_parameters,
    expand,
    option_names,
)
from gmail_align.cli.shared import Shared, command, make_command, require_there
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ConfigError


@dataclass(frozen=True)
class Training:
    """What every training of a captioner takes.

    Attributes:
        language_model: Folder of a causal language model, or of a captioner to train further;
            tabletop is shipped.
        validation_features: Held-out image features, to pick the best step.
        validation_captions: Captions of the held-out images.
    """

    language_model: Annotated[str, "DIR"]
    out: Out
    validation_features: Folder | None = None
    validation_captions: Folder | None = None
    seed: Seed = 0

    def held_out(self) -> CaptionedImages | None:
        """Open the held-out images and their captions, if there are any."""
        features, captions = self.validation_features, self.validation_captions
        if features is None and captions is None:
            return None
        if features is None or captions is None:
            raise ConfigError("--validation-features and --validation-captions are given together")
        return CaptionedImages(load(features, "features"), load(captions))

    def run(self, shared: Shared, config: CaptionerConfig, data: CaptionerData) -> None:
        """Train, and print what was made."""
        if shared.dry_run:
            inputs = {name: artifact.folder for name, artifact in data.artifacts().items()}
            inputs["language_model"] = Path(self.language_model)
            shared.show_plan("train a captioner", self.out, config, **inputs)
            return
        from gmail_align.captioning.training import train_captioner

        path = model_path(self.language_model, "gpt2")
        start = load(path, "captioner") if (path / MANIFEST).exists() else path
        shared.show_artifact(train_captioner(config, data, start, self.out, seed=self.seed))


def train_command(name: str) -> Callable[..., None]:
    """Make the command that trains one kind of captioner, from its inputs and its settings."""
    kind = CAPTIONERS[name]
    _, *own = described_parameters(kind.inputs)

    def run(shared: Shared, training: Training, config: CaptionerConfig, **given: Any) -> None:
        training.run(shared, config, kind.inputs(training.held_out(), **given))

    run.__doc__ = kind.inputs.__doc__
    for part, hint in (("training", Training), ("config", kind.config)):
        own.append(inspect.Parameter(part, inspect.Parameter.KEYWORD_ONLY, annotation=hint))
    taken = frozenset(option for p in own for option in option_names(p.name, p.annotation))
    return make_command(run, {p.name: expand(p, taken) for p in own})


@command
def predict_captions(
    shared: Shared,
    captioner: Folder,
    features: Folder,
    out: Out,
    config: PredictConfig,
    retrieval: Folder | None = None,
) -> None:
    """Predict one caption for every image of a feature store.

    Args:
        captioner: A captioner that train clipcap or train ifcap made.
        features: Image features.
        retrieval: IFCap: image features by the encoder that retrieves captions, if it is another
            one.
    """
    model, source = load(captioner, "captioner"), load(features, "features")
    keys = load_features(retrieval)
    if shared.dry_run:
        shared.show_plan("predict captions", out, config, captioner=captioner, features=features)
        return
    from gmail_align.captioning.predict import predict_captions

    shared.show_artifact(predict_captions(model, source, out, config, retrieval=keys))


@dataclass(frozen=True)
class Prompts:
    """Captions to generate images from.

    Attributes:
        for_prompts: Write captions to generate images from into this folder.
        each: Captions to write for each photo, or for each caption of a class.
        language_model: Folder of a causal language model, which continues captions of classes.
    """

    for_prompts: Folder | None = None
    each: Annotated[int, Field(ge=1)] = 1
    language_model: Annotated[str, "DIR"] | None = None


@dataclass(frozen=True)
class Reader:
    """What reads photos: a captioner and its encoder."""

    captioner: Path | None
    encoder: str | None
    route: Route


def _write_prompts(
    shared: Shared,
    sources: list[Path],
    prompts: Prompts,
    out: Path,
    reader: Reader,
    settings: Settings[PredictConfig],
) -> None:
    """Write captions to generate images from."""
    if len(sources) != 1:
        raise ConfigError("--for-prompts reads one folder of imported images or captions")
    if prompts.language_model is None and None in (reader.captioner, reader.encoder):
        raise ConfigError("--for-prompts needs --captioner and --encoder, or --language-model")
    drawn = {} if "method" in settings.given else {"method": "nucleus"}
    config = settings.build(changes=drawn)
    source = load(sources[0], "images" if prompts.language_model is None else "captions")
    if shared.dry_run:
        shared.show_plan("write captions", out, config, source=sources[0], each=prompts.each)
        return
    from gmail_align.captioning import prompts as writers

    if prompts.language_model is not None:
        model = model_path(prompts.language_model, "gpt2")
        made = writers.continue_captions(source, model, out, config, each=prompts.each)
    else:
        assert reader.captioner is not None and reader.encoder is not None
        captioner = load(reader.captioner, "captioner")
        encoder = open_encoder(reader.encoder, config.device)
        made = writers.caption_photos(
            source, captioner, encoder, out, config, route=reader.route, each=prompts.each
        )
    shared.show_artifact(made)


@command
def caption(
    shared: Shared,
    images: Annotated[list[Path], "IMAGE..."],
    /,
    settings: Settings[PredictConfig],
    captioner: Folder | None = None,
    encoder: EncoderName | None = None,
    route: Route = Route.FROZEN,
    retrieval_encoder: Model | None = None,
    prompts: Prompts = Prompts(),
) -> None:
    """Caption image files with a trained captioner and the encoder that it was trained on.

    Each line has a file, a tab and its caption.

    With --for-prompts the command writes captions to generate images from. --captioner captions
    imported photos. --language-model continues imported captions of classes.

    Args:
        images: Image files; with --for-prompts one folder of imported images or captions.
        captioner: A captioner that train clipcap or train ifcap made.
        route: Which of the encoder's weights the images go through.
        retrieval_encoder: IFCap: the encoder that retrieves captions, if it is another one.
    """
    if prompts.for_prompts is not None:
        reads = Reader(captioner, encoder, route)
        _write_prompts(shared, images, prompts, prompts.for_prompts, reads, settings)
        return
    if captioner is None or encoder is None:
        raise ConfigError("--captioner and --encoder are needed: name both")
    artifact, config = load(captioner, "captioner"), settings.build()
    if shared.dry_run:
        require_there(images)
        shared.show_plan("caption", captioner, config, images=len(images), route=route)
        return
    from gmail_align.captioning.pretrained import Captioner

    reader = open_encoder(encoder, config.device)
    by = None if retrieval_encoder is None else open_encoder(retrieval_encoder, config.device)
    rows = Captioner(artifact, reader, config, route=route, retrieval=by).describe(images)
    lines = "\n".join(f"{row['file']}\t{row['text']}" for row in rows)
    shared.show({"captions": rows}, lines)


@command
def convert_clipcap(
    shared: Shared,
    weights: File,
    /,
    gpt2: Folder,
    out: Out,
    normalise: Annotated[bool, "--normalise/--raw"] | None = None,
    norm: float | None = None,
) -> None:
    """Turn ClipCap's released weights into a captioner, without running code in the file.

    Args:
        weights: ClipCap's .pt file.
        gpt2: GPT-2's configuration and tokenizer.
        normalise: Whether the captioner reads features of unit length or raw ones; by default raw
            for the MLP and unit length for the transformer.
        norm: Length to scale features to; the MLP needs it to read aligned features.
    """
    if shared.dry_run:
        shared.show_plan("convert-clipcap", out, weights=weights, gpt2=gpt2)
        return
    from gmail_align.captioning.clipcap.convert import convert_clipcap as convert

    shared.show_artifact(convert(weights, gpt2, out, normalise=normalise, norm=norm))
