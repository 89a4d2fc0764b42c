"""``gmail-align evaluate probe``: a linear probe of features, of artifacts or of plain files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmail_align.artifacts import load
from gmail_align.cli.evaluate_zeroshot import read_object
from gmail_align.cli.on_files import OutOrNot, Subset, show_answer
from gmail_align.cli.shared import Protocol, Seed, Shared, command
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
        Path | None, typer.Option(metavar="FILE", help="JSON: image id to class, of artifacts.")
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
    if labels is None:
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
    show_answer(shared, probe_of_files(train, validation, test, options, keep=out), out)


def _of_artifacts(
    shared: Shared,
    splits: Mapping[str, Path | None],
    labels: Path,
    out: Path | None,
    options: ProbeOptions,
) -> None:
    from gmail_align.evaluation.probe import evaluate_probe

    if out is None:
        raise ConfigError("--out is missing: name a folder for the result")
    table = read_object(labels)
    classes = sorted({str(name) for name in table.values()})
    if not classes:
        raise DataError(f"{labels} names no image: give image id to class")
    numbers = {image: classes.index(str(name)) for image, name in table.items()}
    train, validation, test = (
        None if path is None else load(path, "features") for path in splits.values()
    )
    assert train is not None and test is not None
    shared.show_artifact(evaluate_probe(train, validation, test, numbers, out, options))
