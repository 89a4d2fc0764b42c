"""``gmail-align evaluate probe``: a linear probe of features, of artifacts or of plain files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.evaluate_zeroshot import read_object
from gmail_align.cli.on_files import OutOrNot, Subset, refuse_other, show_answer
from gmail_align.cli.options import Protocol, Seed
from gmail_align.cli.shared import Shared, command
from gmail_align.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gmail_align.evaluation.probe import ProbeOptions

_LABELS = "Integers (n,), of a .npy file of features."


@command
def probe(
    shared: Shared,
    train: Annotated[Path, typer.Option(metavar="DIR|X.npy", help="Features of training images.")],
    test: Annotated[Path, typer.Option(metavar="DIR|X.npy", help="Features of test images.")],
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|X.npy",
            help="Features of validation images; without, a fifth of the training images.",
        ),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Of artifacts: JSON of image id to class, or the folder of classes that an import "
            "made; may be repeated.",
        ),
    ] = None,
    train_labels: Annotated[Path | None, typer.Option(metavar="Y.npy", help=_LABELS)] = None,
    validation_labels: Annotated[Path | None, typer.Option(metavar="Y.npy", help=_LABELS)] = None,
    test_labels: Annotated[Path | None, typer.Option(metavar="Y.npy", help=_LABELS)] = None,
    out: OutOrNot = None,
    protocol: Protocol = "linear_probe",
    subset: Subset = False,
    seed: Seed = 0,
) -> None:
    """Fit a linear classifier on features: the weight decay by validation, then on all of them.

    Give artifacts of features with --labels and --out, or .npy files with the labels of each.
    """
    from gmail_align.evaluation.probe import ProbeOptions

    shared.refuse_configuration()
    options = ProbeOptions(protocol, subset, seed)
    splits = {"train": train, "validation": validation, "test": test}
    if shared.dry_run:
        shared.show_plan("evaluate probe", out or Path("standard output"), **splits)
        return
    if not labels:
        beside = {"train": train_labels, "validation": validation_labels, "test": test_labels}
        _of_files(shared, splits, beside, out, options)
    else:
        _of_artifacts(shared, splits, labels, out, options)


def _of_files(
    shared: Shared,
    splits: Mapping[str, Path | None],
    labels: Mapping[str, Path | None],
    out: Path | None,
    options: ProbeOptions,
) -> None:
    from gmail_align.evaluation.probe import probe_of_files

    for name, path in splits.items():
        if (path is None) != (labels[name] is None):
            raise ConfigError(f"--{name} and --{name}-labels go together (or give --labels)")
    train, validation, test = (
        (path, beside) if path is not None and beside is not None else None
        for path, beside in zip(splits.values(), labels.values(), strict=True)
    )
    assert train is not None and test is not None
    refuse_other(out)
    show_answer(shared, probe_of_files(train, validation, test, options, keep=out), out)


def _of_artifacts(
    shared: Shared,
    splits: Mapping[str, Path | None],
    labels: Sequence[Path],
    out: Path | None,
    options: ProbeOptions,
) -> None:
    from gmail_align.evaluation.probe import evaluate_probe

    if out is None:
        raise ConfigError("--out is missing: name a folder for the result")
    numbers = numbered_classes(labels)
    train, validation, test = (
        None if path is None else load(path, "features") for path in splits.values()
    )
    assert train is not None and test is not None
    shared.show_artifact(evaluate_probe(train, validation, test, numbers, out, options))


def numbered_classes(paths: Sequence[Path]) -> dict[str, int]:
    """Return image id -> number of its class, classes counted by name.

    Args:
        paths: JSON files of image id to class, or folders of classes that an import made.

    Raises:
        DataError: a file is something else, none names an image, or two disagree about one.
    """
    table: dict[str, str] = {}
    for path in paths:
        folder = path.is_dir()
        own = read_object(load(path, "classes").path("labels.json") if folder else path)
        for image, name in own.items():
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise DataError(f"{path}: image {image} is of class {name!r}: give it a name")
            if table.setdefault(image, str(name)) != str(name):
                raise DataError(
                    f"{path} says that image {image} is of class {name!r}, and another that it is "
                    f"of {table[image]!r}"
                )
    if not table:
        raise DataError(f"{', '.join(map(str, paths))} names no image: give image id to class")
    places = {name: number for number, name in enumerate(sorted(set(table.values())))}
    return {image: places[name] for image, name in table.items()}
