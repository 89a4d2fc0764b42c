"""``gmail-align evaluate finetune``: a vision tower fine-tuned for classification."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.evaluate_probe import numbered_classes
from gmail_align.cli.options import EncoderName, Out, Protocol, Seed, Subset
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.encoders.route import Route
from gmail_align.evaluation.config import FinetuneConfig


@command
def finetune(
    shared: Shared,
    train: Annotated[Path, typer.Option(metavar="DIR", help="Training images, an artifact.")],
    test: Annotated[Path, typer.Option(metavar="DIR", help="Test images.")],
    labels: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="JSON: image id to class, or the folder of classes that an import made; may be "
            "repeated.",
        ),
    ],
    encoder: EncoderName,
    out: Out,
    config: FinetuneConfig,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Validation images; without, a fifth of the training images."
        ),
    ] = None,
    route: Annotated[
        Route, typer.Option(help="Whose weights are the start; a plain model has one.")
    ] = Route.REAL,
    protocol: Protocol = "fine_tune",
    subset: Subset = False,
    seed: Seed = 0,
) -> None:
    """Fine-tune an encoder's whole vision tower on labelled images, and classify test images.

    SynCLR's recipe; --set epochs=20 and the like change it. The epoch that does best on validation
    images is judged.
    """
    splits = {"train": train, "validation": validation, "test": test}
    images = {name: load(path, "images") for name, path in splits.items() if path is not None}
    numbers = numbered_classes(labels)
    if shared.dry_run:
        shared.show_plan("evaluate finetune", out, config, **splits, labels=len(numbers))
        return
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.evaluation.finetune import Tuned, evaluate_finetune
    from gmail_align.evaluation.probe import ProbeOptions

    start = Tuned(GmailEncoder.from_pretrained(model_of(encoder, "clip")), route)
    options = ProbeOptions(protocol, subset, seed)
    shared.show_artifact(evaluate_finetune(config, images, numbers, start, out, options))
