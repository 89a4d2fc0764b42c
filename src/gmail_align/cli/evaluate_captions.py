"""``gmail-align evaluate captions``: predicted captions against human ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import Out, Protocol, Seed, Shared, command
from gmail_align.errors import ConfigError


@command
def captions(
    shared: Shared,
    predictions: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]DIR", help="Predictions; several are compared in pairs."),
    ],
    references: Annotated[
        Path, typer.Option(metavar="DIR", help="Human captions of the same images.")
    ],
    out: Out,
    protocol: Protocol = "captions",
    metric: Annotated[
        list[str] | None, typer.Option(help="Only this metric; may be repeated.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Score predicted captions: BLEU, METEOR, ROUGE-L, CIDEr and SPICE, each with its interval.

    Images are those of the first predictions; every one needs a human caption.
    """
    from gmail_align.artifacts import read_jsonl
    from gmail_align.data.captions import read_captions

    shared.refuse_configuration()
    folders = named_folders(predictions)
    systems = {name: load(folder, "predictions") for name, folder in folders.items()}
    first = next(iter(systems.values()))
    images = {row["image_id"] for row in read_jsonl(first.path("predictions.jsonl"))}
    human: dict[str, list[str]] = {}
    for caption in read_captions(load(references, "captions")):
        if caption.image_id in images:
            human.setdefault(caption.image_id, []).append(caption.text)
    if shared.dry_run:
        shared.show_plan("evaluate captions", out, systems=folders, images=len(images))
        return
    from gmail_align.evaluation.captions import evaluate_captions
    from gmail_align.metrics.captions import METRICS

    result = evaluate_captions(
        systems,
        human,
        out,
        protocol=protocol,
        paired=[(later, earlier) for earlier, later in pairwise(systems)],
        metrics=metric or METRICS,
        seed=seed,
    )
    shared.show_artifact(result)


def named_folders(texts: list[str]) -> dict[str, Path]:
    """Read ``NAME=DIR`` or ``DIR``, whose name is the folder's.

    Raises:
        ConfigError: two have one name.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        key = name if equals else path.resolve().name
        if key in found:
            raise ConfigError(f"two predictions are named {key!r}: name them, as in a={path}")
        found[key] = path
    return found
