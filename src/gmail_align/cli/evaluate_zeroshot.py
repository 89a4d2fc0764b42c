"""``gmail-align evaluate zeroshot``: zero-shot classification, of artifacts or of plain files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gmail_align.artifacts import load
from gmail_align.cli.on_files import OutOrNot, Subset, one_door, refuse_other, show_answer
from gmail_align.cli.options import Protocol, Seed
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.errors import ConfigError, DataError


@command
def zeroshot(
    shared: Shared,
    labels: Annotated[
        Path,
        typer.Option(metavar="FILE", help="JSON: image id to class; of files, integers (Y.npy)."),
    ],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Image features, an artifact.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON: class to its prompts, equally many each; a --protocol brings its own.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Aligned encoder, or a CLIP; tabletop is shipped."),
    ] = None,
    out: OutOrNot = None,
    image_features: Annotated[
        Path | None, typer.Option(metavar="I.npy", help="Or plain files: floats (images, dim).")
    ] = None,
    class_features: Annotated[
        Path | None,
        typer.Option(metavar="C.npy", help="Floats (classes, dim) or (classes, prompts, dim)."),
    ] = None,
    protocol: Protocol = "zeroshot",
    subset: Subset = False,
    seed: Seed = 0,
) -> None:
    """Score zero-shot classification: overall accuracy and the mean over classes.

    Give an artifact and an encoder (--images, --labels, --encoder, --out), or three .npy files
    (--image-features, --labels, --class-features).
    """
    shared.refuse_configuration()
    by_file, paths = one_door(
        {"--images": images, "--encoder": None if encoder is None else Path(encoder)},
        {"--image-features": image_features, "--class-features": class_features},
        out,
    )
    how = {"protocol": protocol, "subset": subset, "seed": seed}
    if by_file:
        _of_files(shared, (paths[0], labels, paths[1]), out, how)
        return
    prompts = class_prompts(classes, protocol)
    _of_artifacts(shared, (paths[0], labels), (str(encoder), prompts), out, how)


def _of_files(
    shared: Shared, paths: Sequence[Path], out: Path | None, how: Mapping[str, Any]
) -> None:
    from gmail_align.evaluation.files import zeroshot_of_files

    if shared.dry_run:
        names = [str(path) for path in paths]
        shared.show_plan("evaluate zeroshot", out or Path("standard output"), files=names, **how)
        return
    refuse_other(out)
    show_answer(shared, zeroshot_of_files(*paths, **how, keep=out), out)


def _of_artifacts(
    shared: Shared,
    paths: tuple[Path, Path],
    texts: tuple[str, dict[str, list[str]]],
    out: Path | None,
    how: Mapping[str, Any],
) -> None:
    assert out is not None
    encoder, prompts = texts
    features = load(paths[0], "features")
    numbers = read_labels(paths[1], list(prompts), known_set(how["protocol"], prompts))
    if shared.dry_run:
        counts = {"images": len(numbers), "classes": len(prompts)}
        shared.show_plan("evaluate zeroshot", out, **counts, **how)
        return
    import torch

    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.evaluation.run import evaluate_zeroshot

    model = GmailEncoder.from_pretrained(model_of(encoder, "clip"))
    route = features.manifest["config"]["route"]  # texts of the weights that the images went by
    rows = torch.stack([model.encode_texts(own, route) for own in prompts.values()])
    shared.show_artifact(evaluate_zeroshot(features, numbers, rows, out, **how))


def known_set(protocol: str, prompts: Mapping[str, object]) -> str | None:
    """Return the name of the shipped class set that a protocol's labels may be spelled as."""
    from gmail_align.data.classes import CLASS_SETS, class_set

    known = protocol in CLASS_SETS and list(class_set(protocol).keys) == list(prompts)
    return protocol if known else None


def class_prompts(path: Path | None, protocol: str) -> dict[str, list[str]]:
    """Return class -> prompts of a file or, without one, those that the protocol's field uses.

    Raises:
        DataError: the file is something else.
        ConfigError: there is no file, and the protocol is none of the known sets.
    """
    from gmail_align.data.classes import class_set
    from gmail_align.data.protocols import PROTOCOLS

    if path is not None:
        return read_prompts(path)
    known = PROTOCOLS.get(protocol)
    if known is None or known.class_set is None:
        sets = ", ".join(name for name, one in PROTOCOLS.items() if one.class_set)
        raise ConfigError(f"give --classes, or as --protocol one that brings them: {sets}")
    return class_set(known.class_set).prompts()


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Return class -> prompts of ``{class: [prompt, ...]}``, or of the tabletop's ``classes.json``.

    Raises:
        DataError: the file is something else, or classes differ in their number of prompts.
    """
    table = read_object(path)
    if isinstance(table.get("classes"), dict):
        table = {name: row["prompts"] for name, row in table["classes"].items()}
    for name, prompts in table.items():
        if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
            raise DataError(f"{path}: class {name!r} has no list of prompts")
    counts = {len(prompts) for prompts in table.values()}
    if len(counts) != 1 or 0 in counts:
        raise DataError(f"{path}: every class needs the same number of prompts, at least one")
    return table


def read_labels(path: Path, classes: list[str], known: str | None = None) -> dict[str, int]:
    """Return image id -> number of its class.

    Args:
        path: The file.
        classes: The classes in their order.
        known: Class set that knows other spellings of them, as its own files have them.

    Raises:
        DataError: the file is something else, or names an unknown class.
    """
    from gmail_align.data.classes import class_set

    table, places = read_object(path), {name: row for row, name in enumerate(classes)}
    found = {}
    for image, said in table.items():
        name = said
        if known is not None and isinstance(said, str) and said not in places:
            name = class_set(known).key(said)
        if not isinstance(name, str) or name not in places:
            raise DataError(f"{path}: image {image} is of class {said!r}, which is not listed")
        found[image] = places[name]
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object")
    return value
