"""``gmail-align evaluate zeroshot``: zero-shot classification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gmail_align.artifacts import load
from gmail_align.cli.shared import EncoderName, Out, Protocol, Seed, Shared, command, model_of
from gmail_align.errors import DataError


@command
def zeroshot(
    shared: Shared,
    images: Annotated[Path, typer.Option(metavar="DIR", help="Image features.")],
    labels: Annotated[Path, typer.Option(metavar="FILE", help="JSON: image id to class.")],
    classes: Annotated[
        Path, typer.Option(metavar="FILE", help="JSON: class to its prompts, equally many each.")
    ],
    encoder: EncoderName,
    out: Out,
    protocol: Protocol = "zeroshot",
    seed: Seed = 0,
) -> None:
    """Score zero-shot classification: overall and class-wise accuracy."""
    shared.refuse_configuration()
    features = load(images, "features")
    prompts = read_prompts(classes)
    numbers = read_labels(labels, list(prompts))
    if shared.dry_run:
        shared.show_plan("evaluate zeroshot", out, images=len(numbers), classes=len(prompts))
        return
    import torch

    from gmail_align.encoders.clip import GmailEncoder
    from gmail_align.evaluation.run import evaluate_zeroshot

    model = GmailEncoder.from_pretrained(model_of(encoder, "clip"))
    texts = torch.stack([model.encode_texts(own) for own in prompts.values()])
    shared.show_artifact(
        evaluate_zeroshot(features, numbers, texts, out, protocol=protocol, seed=seed)
    )


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Return class -> prompts of ``{class: [prompt, ...]}``, or of the tabletop's ``classes.json``.

    Raises:
        DataError: the file is something else, or classes differ in their number of prompts.
    """
    table = _read_object(path)
    if isinstance(table.get("classes"), dict):
        table = {name: row["prompts"] for name, row in table["classes"].items()}
    for name, prompts in table.items():
        if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
            raise DataError(f"{path}: class {name!r} has no list of prompts")
    counts = {len(prompts) for prompts in table.values()}
    if len(counts) != 1 or 0 in counts:
        raise DataError(f"{path}: every class needs the same number of prompts, at least one")
    return table


def read_labels(path: Path, classes: list[str]) -> dict[str, int]:
    """Return image id -> number of its class.

    Raises:
        DataError: the file is something else, or names an unknown class.
    """
    table, places = _read_object(path), {name: row for row, name in enumerate(classes)}
    for image, name in table.items():
        if not isinstance(name, str) or name not in places:
            raise DataError(f"{path}: image {image} is of class {name!r}, which is not listed")
    return {image: places[name] for image, name in table.items()}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object")
    return value
