"""``gmail-align train clipcap`` and ``train ifcap``: captioners on image or text features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import MANIFEST, Artifact, load
from gmail_align.captioning.clipcap.config import ClipCapConfig
from gmail_align.captioning.config import CaptionerConfig
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.captioning.inputs import CaptionedImages, CaptionerData, EmbeddedCaptions
from gmail_align.cli.options import Out, Seed
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.errors import ConfigError


@dataclass(frozen=True)
class Training:
    """What every training of a captioner takes."""

    language_model: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="A causal language model, or a captioner to continue from; tabletop is shipped.",
        ),
    ]
    out: Out
    validation_features: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Held-out image features, to pick the best step."),
    ] = None
    validation_captions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Captions of the held-out images.")
    ] = None
    seed: Seed = 0

    def held_out(self, retrieval: Path | None = None) -> CaptionedImages | None:
        """Open the held-out images and their captions, if there are any."""
        features, captions = self.validation_features, self.validation_captions
        if features is None and captions is None:
            return None
        if features is None or captions is None:
            raise ConfigError("--validation-features and --validation-captions are given together")
        return CaptionedImages(load(features, "features"), load(captions), _features(retrieval))

    def run(self, shared: Shared, config: CaptionerConfig, data: CaptionerData) -> None:
        """Train, and print what was made."""
        if shared.dry_run:
            inputs = {name: artifact.folder for name, artifact in data.artifacts().items()}
            inputs["language_model"] = Path(self.language_model)
            shared.show_plan("train a captioner", self.out, config, **inputs)
            return
        from gmail_align.captioning.training import train_captioner

        path = model_of(self.language_model, "gpt2")
        start = load(path, "captioner") if (path / MANIFEST).exists() else path
        shared.show_artifact(train_captioner(config, data, start, self.out, seed=self.seed))


@command
def clipcap(
    shared: Shared,
    features: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            help="Features of real or generated images; repeat it to train on several sets.",
        ),
    ],
    captions: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Their captions; one for each --features.")
    ],
    training: Training,
    config: ClipCapConfig,
) -> None:
    """Train ClipCap on features and their captions.

    Features are matched with captions by image: real images by their own id, generated images by
    the caption that they were generated from.
    """
    if len(features) != len(captions):
        raise ConfigError("--features and --captions come in pairs: give one for the other")
    images = tuple(
        CaptionedImages(load(folder, "features"), load(texts))
        for folder, texts in zip(features, captions, strict=True)
    )
    training.run(shared, config, CaptionerData(images, validation=training.held_out()))


@command
def ifcap(
    shared: Shared,
    captions: Annotated[Path, typer.Option(metavar="DIR", help="The captions, or their pairs.")],
    texts: Annotated[
        Path, typer.Option(metavar="DIR", help="Their text features, by the encoder it will read.")
    ],
    training: Training,
    config: IFCapConfig,
    retrieval_texts: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Their text features by the encoder that looks captions up."
        ),
    ] = None,
    generated: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Features of images generated from the captions."),
    ] = None,
    validation_retrieval: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Held-out features by the encoder that looks captions up."
        ),
    ] = None,
) -> None:
    """Train IFCap on captions alone, or with generated images (--set mode=gen_embed or mix)."""
    words, images = load(captions), _features(generated)
    data = CaptionerData(
        (CaptionedImages(images, words),) if images else (),
        EmbeddedCaptions(words, load(texts, "features"), _features(retrieval_texts)),
        training.held_out(validation_retrieval),
    )
    training.run(shared, config, data)


def _features(folder: Path | None) -> Artifact | None:
    return None if folder is None else load(folder, "features")
