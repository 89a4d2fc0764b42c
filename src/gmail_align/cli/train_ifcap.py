"""``gmail-align train ifcap``: a captioner trained on captions, and on generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import Artifact, load
from gmail_align.captioning.ifcap.config import IFCapConfig
from gmail_align.cli.options import Out, Seed
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.cli.train_clipcap import caption_rows
from gmail_align.errors import ConfigError


@command
def ifcap(
    shared: Shared,
    captions: Annotated[Path, typer.Option(metavar="DIR", help="The captions, or their pairs.")],
    texts: Annotated[
        Path, typer.Option(metavar="DIR", help="Their text features, by the encoder it will read.")
    ],
    gpt2: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of a GPT-2; tabletop is shipped.")
    ],
    out: Out,
    config: IFCapConfig,
    retrieval_texts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The same by the encoder that looks captions up."),
    ] = None,
    generated: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Features of images generated from the captions."),
    ] = None,
    validation_features: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Held-out image features.")
    ] = None,
    validation_retrieval: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The same by the encoder that looks up.")
    ] = None,
    validation_captions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Captions of the held-out images.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train IFCap on captions alone, or with generated images (--set mode=gen_embed or mix)."""
    if (validation_features is None) != (validation_captions is None):
        raise ConfigError("--validation-features and --validation-captions are given together")
    rows = _texts(load(captions))
    source = load(texts, "features")
    if shared.dry_run:
        shared.show_plan("train ifcap", out, config, captions=len(rows), gpt2=gpt2)
        return
    from gmail_align.captioning.ifcap.run import CaptionSource, ImageSource, train_ifcap

    held_out = None
    if validation_features is not None and validation_captions is not None:
        held = load(validation_features, "features")
        held_rows = caption_rows(held, load(validation_captions))
        held_out = ImageSource(held, held_rows, _maybe(validation_retrieval))
    data = CaptionSource(rows, source, _maybe(retrieval_texts), _maybe(generated))
    path = model_of(gpt2, "gpt2")
    shared.show_artifact(train_ifcap(config, data, path, out, validation=held_out, seed=seed))


def _maybe(folder: Path | None) -> Artifact | None:
    return None if folder is None else load(folder, "features")


def _texts(captions: Artifact) -> list[tuple[str, str]]:
    """Return (caption id, caption), each id once, of captions or of pairs."""
    from gmail_align.data.captions import read_captions
    from gmail_align.data.pairs import read_pairs

    read = read_pairs if captions.kind == "pairs" else read_captions
    return list({row.caption_id: row.text for row in read(captions)}.items())
