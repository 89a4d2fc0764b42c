"""``gmail-align import``, ``pair``, ``choose`` and ``leaks``: captions, images and pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gmail_align.artifacts import load
from gmail_align.cli.options import Folder, Out, Seed, expand
from gmail_align.cli.shared import Shared, command, make_command
from gmail_align.errors import DataError, UserError
from gmail_align.importing.options import ImportOptions
from gmail_align.progress import say


def import_command(name: str) -> Callable[..., None]:
    """Make the command of one importer from its annotated options."""
    from gmail_align.importing.run import import_data, option_fields
    from gmail_align.importing.table import find_importer

    importer = find_importer(name).load()

    def run(shared: Shared, out: Path, options: ImportOptions, **given: Any) -> None:
        given = {key: value for key, value in given.items() if value is not None}
        if shared.dry_run:
            shared.show_plan(f"import {name}", out, **given)
            return
        shared.show_artifact(*import_data(name, given, out, options).values())

    run.__doc__ = importer.__doc__
    parts = {field.name: expand(field) for field in option_fields(importer).values()}
    for own, kind in (("out", Out), ("options", ImportOptions)):
        parts[own] = expand(inspect.Parameter(own, inspect.Parameter.KEYWORD_ONLY, annotation=kind))
    return make_command(run, parts)


@command
def import_path(shared: Shared, source: Path, /, out: Out, options: ImportOptions) -> None:
    """Recognise the format of a folder, an archive or a table, print it, and import the data.

    The word `path` may be left out: `gmail-align import my_photos --out DIR`. Each split gets a
    folder of its own; `gmail-align split` makes the splits that the data do not have.

    Args:
        source: Your data.
    """
    from gmail_align.importing.run import import_data
    from gmail_align.workflow.layouts import find_layout

    layout = find_layout(source)
    say(f"{source} holds {layout.kind}: {', '.join(layout.imports())}")
    for sentence in layout.left_out:
        say(sentence)
    if shared.dry_run:
        shared.show_plan("import", out, **layout.imports())
        return
    made = [import_data(*one, options) for one in layout.import_calls(out)]
    shared.show_artifact(*(artifact for parts in made for artifact in parts.values()))


def _number_or_share(text: str) -> int | float:
    """Read a number of images: ``1`` is one image, ``1.0`` is all of them."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise UserError(f"--images {text} is neither a number nor a share of images") from error


@command
def pair(shared: Shared, captions: Folder, real: Folder, generated: Folder, out: Out) -> None:
    """Pair each caption's real image with the images generated from it.

    Args:
        captions: Captions of the real images.
        real: The real images.
        generated: The images generated from the captions.
    """
    from gmail_align.data.pairs import make_pairs

    inputs = (load(captions, "captions"), load(real, "images"), load(generated, "images"))
    if shared.dry_run:
        shared.show_plan("pair", out, captions=captions, real=real, generated=generated)
        return
    shared.show_artifact(make_pairs(*inputs, out))


@command
def choose(
    shared: Shared,
    source: Folder,
    /,
    out: Out,
    each: Annotated[int | None, Field(ge=1)] = None,
    images: Annotated[str | None, "N"] = None,
    rest: bool = False,
    seed: int = 0,
) -> None:
    """Keep some captions of each image, or all captions or pairs of some images.

    Use it for a first trial on a thousand images, for one caption an image as in the paper, or to
    make pairs scarce. A hash of the seed and an image's id decides, so a larger choice contains a
    smaller one.

    Args:
        source: Captions, or pairs.
        each: Largest number of captions that an image keeps; by default all.
        images: Real images to keep: a number such as 1000, or a share such as 0.2.
        rest: Keep what the same command without --rest leaves out.
        seed: Another seed makes another choice.
    """
    from gmail_align.data.subsets import choose_captions, choose_pairs

    artifact = load(source)
    number = None if images is None else _number_or_share(images)
    if artifact.kind not in ("captions", "pairs"):
        raise UserError(f"{source} holds {artifact.kind}: choose among captions or pairs")
    if artifact.kind == "pairs" and (each is not None or number is None):
        raise UserError(f"{source} holds pairs: choose real images among them with --images")
    if shared.dry_run:
        shared.show_plan("choose", out, source=source)
    elif artifact.kind == "pairs" and number is not None:
        shared.show_artifact(choose_pairs(artifact, number, out, rest=rest, seed=seed))
    else:
        kept = choose_captions(artifact, each, out, images=number, rest=rest, seed=seed)
        shared.show_artifact(kept)


@command
def split(
    shared: Shared,
    source: Folder,
    /,
    out: Out,
    test: float = 0.1,
    validation: float = 0.1,
    seed: Seed = 0,
) -> None:
    """Divide captions or pairs into train, validation and test, which share no real image.

    A hash of the seed and an image's id decides. DIR gets a folder for each part; images stay
    where they are.

    Args:
        source: Captions, or pairs.
        test: Share of the real images to test on; 0 for none.
        validation: Share of the real images that pick the best step; 0 for none.
    """
    from gmail_align.data.subsets import split as cut

    artifact = load(source)
    if artifact.kind not in ("captions", "pairs"):
        raise UserError(f"{source} holds {artifact.kind}: split captions or pairs")
    shares = {n: share for n, share in (("test", test), ("validation", validation)) if share}
    if shared.dry_run:
        shared.show_plan("split", out, source=source, **shares)
        return
    shared.show_artifact(*cut(artifact, shares, out, seed=seed).values())


@command
def leaks(
    shared: Shared,
    train: Folder,
    evaluation: list[Folder],
    drop: Folder | None = None,
    distance: Annotated[int, Field(ge=0, le=64)] = 10,
    ids_only: bool = False,
) -> None:
    """Check training images against evaluations, by photo id and by perceptual hash.

    Exits with 2 when something leaks and --drop is not given.

    Args:
        train: Images or captions to train on.
        evaluation: Images or captions to evaluate on; may be repeated.
        drop: Folder for the training set without the leaks.
        distance: Largest difference of perceptual hashes, in bits of 128, at which two images are
            copies.
        ids_only: Compare ids only; no image is read.
    """
    train_set, others = load(train), [load(path) for path in evaluation]
    if shared.dry_run:
        shared.show_plan("check leaks", drop or train, train=train, evaluation=evaluation)
        return
    from gmail_align.data.leaks import drop_leaks, find_leaks, refuse_leaks

    leaking = find_leaks(train_set, others, distance=distance, hashed=not ids_only)
    value = leaking.to_dict()
    how = "ids and looks" if leaking.hashed else "ids alone"
    lines = (
        f"{value['leaking']} of {leaking.train} training images are among {leaking.evaluation} of "
        f"evaluation (by {how}): {value['by_id']} by id, {value['by_looks']} by looks"
    )
    if drop is None:
        shared.show(value, lines)
        refuse_leaks(leaking, train_set)
    if leaking.not_compared:
        raise DataError(
            f"cannot tell whether {train} leaks into {leaking.not_compared[0]}: their ids do not "
            "both name photos of a known set, and looks were not compared; give the images of both"
        )
    if drop is None:
        return
    made = drop_leaks(train_set, leaking, drop)
    value["dropped_into"] = {"folder": str(made.folder), "counts": made.counts}
    shared.show(value, f"{lines}\n{made.folder}: {made.kind}, without them")
