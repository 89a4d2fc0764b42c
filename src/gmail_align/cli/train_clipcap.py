"""``gmail-align train clipcap``: a captioner on image features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import MANIFEST, Artifact, load
from gmail_align.captioning.config import ClipCapConfig
from gmail_align.cli.options import Out, Seed
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.errors import ConfigError, DataError
from gmail_align.progress import say


@command
def clipcap(
    shared: Shared,
    features: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            help="Features of real or generated images; again for more, to train on both.",
        ),
    ],
    captions: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Their captions; one for each --features.")
    ],
    gpt2: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="A GPT-2, or a captioner to go on with; tabletop is shipped."
        ),
    ],
    out: Out,
    config: ClipCapConfig,
    validation_features: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Held-out features, to pick the step.")
    ] = None,
    validation_captions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Captions of the held-out features.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train ClipCap on features and their captions.

    Features are matched with captions by image: real images by their own id, generated images by
    the caption that they were generated from.
    """
    if (validation_features is None) != (validation_captions is None):
        raise ConfigError("--validation-features and --validation-captions are given together")
    if len(features) != len(captions):
        raise ConfigError("--features and --captions come in pairs: give one for the other")
    first, *more = [labelled(*pair) for pair in zip(features, captions, strict=True)]
    held_out = None
    if validation_features is not None and validation_captions is not None:
        held_out = labelled(validation_features, validation_captions)
    if shared.dry_run:
        count = sum(len(rows) for _, rows in [first, *more])
        shared.show_plan("train clipcap", out, config, captions=count, gpt2=gpt2)
        return
    from gmail_align.captioning.clipcap.run import train_clipcap

    origin = origin_of(gpt2)
    shared.show_artifact(
        train_clipcap(config, *first, origin, out, validation=held_out, more=more, seed=seed)
    )


def origin_of(gpt2: str) -> Path | Artifact:
    """Return the GPT-2 folder, or the captioner, that a training starts from."""
    path = model_of(gpt2, "gpt2")
    return load(path, "captioner") if (path / MANIFEST).exists() else path


def labelled(features: Path, captions: Path) -> tuple[Artifact, list[tuple[str, str]]]:
    """Open features and match them with their captions."""
    source = load(features, "features")
    return source, caption_rows(source, load(captions))


def caption_rows(features: Artifact, captions: Artifact) -> list[tuple[str, str]]:
    """Return (id of a feature, caption) for every caption whose image has a feature.

    Args:
        features: Features of real images, or of images generated from the captions.
        captions: An artifact of kind ``captions`` or ``pairs``.

    Raises:
        DataError: no caption has a feature, or the features are not of images.
    """
    from gmail_align.data.captions import read_captions
    from gmail_align.data.pairs import read_pairs
    from gmail_align.features.store import read_features

    if features.manifest["config"]["what"] == "text":
        raise DataError(f"{features.folder} holds features of captions: give those of images")
    ids = list(read_features(features).ids)
    if captions.kind == "pairs":
        pairs = read_pairs(captions)
        by_real = [(pair.real_image_id, pair.text) for pair in pairs]
        by_generated = [(pair.generated_image_id, pair.text) for pair in pairs]
    else:
        listed = read_captions(captions)
        texts = {caption.caption_id: caption.text for caption in listed}
        origins = ((name, name.rpartition("-")[0]) for name in ids)
        by_real = [(caption.image_id, caption.text) for caption in listed]
        by_generated = [(name, texts[origin]) for name, origin in origins if origin in texts]
    known = set(ids)
    rows = [row for row in dict.fromkeys(by_real) if row[0] in known]
    rows = rows or [row for row in by_generated if row[0] in known]
    if not rows:
        raise DataError(
            f"no caption of {captions.folder} belongs to an image of {features.folder}: "
            "give the captions of the same images"
        )
    say(f"{len(rows)} captions of {len({name for name, _ in rows})} images")
    return rows
