"""``gmail-align gap``: how far generated images are from real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmail_align.artifacts import load
from gmail_align.cli.on_files import OutOrNot, answer_lines, refuse_other
from gmail_align.cli.options import Device, Seed
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.errors import ConfigError
from gmail_align.gap.config import GapConfig
from gmail_align.progress import say

if TYPE_CHECKING:
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.gap.files import Beside
    from gmail_align.gap.prepare import Prepared

AnyEncoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="MODEL",
        help="Encoder, for images; without, a CLIP of OpenAI's that is on this machine. "
        "Features go to OUT-features.",
    ),
]
RealClasses = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The class of each row of R, one a line.")
]
GeneratedClasses = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The class of each row of G.")
]
Generators = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What made each row of G, one a line.")
]
TextFeatures = Annotated[
    Path | None,
    typer.Option(metavar="T.npy", help="Captions of the pairs, or of the classes by name."),
]


@command
def gap(
    shared: Shared,
    real: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Real images: a folder, a zip, or an artifact."),
    ] = None,
    generated: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The same of generated images.")
    ] = None,
    out: OutOrNot = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pairs; adds what only pairs can tell.")
    ] = None,
    paired: Annotated[
        bool, typer.Option("--paired", help="Rows of the files, or files of one name, are pairs.")
    ] = False,
    encoder: AnyEncoder = None,
    real_features: Annotated[
        Path | None, typer.Option(metavar="R.npy", help="Or plain files: floats (images, dim).")
    ] = None,
    generated_features: Annotated[
        Path | None, typer.Option(metavar="G.npy", help="Floats (images, dim).")
    ] = None,
    real_classes: RealClasses = None,
    generated_classes: GeneratedClasses = None,
    generators: Generators = None,
    text_features: TextFeatures = None,
    *,
    config: GapConfig,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure the gap between real and generated images, before anything is trained on it.

    Give two folders (or zips, or artifacts), or features in two .npy files. Subfolders of images
    are read as classes, and above those as generators; captions are found in captions.jsonl or in a
    .txt beside each image. OUT/report/index.html is a page of its own.
    """
    from gmail_align.gap.files import Beside

    beside = Beside(real_classes, generated_classes, generators, text_features)
    files = _both("--real-features", real_features, "--generated-features", generated_features)
    sides = _both("--real", real, "--generated", generated)
    if sides is not None and sides[0].suffix == sides[1].suffix == ".npy":
        files, sides = sides, None
    how = {"config": config, "seed": seed}
    if files is not None:
        if sides or pairs or encoder:
            raise ConfigError("features in files need no --real, --generated, --pairs, --encoder")
        _of_files(shared, files, out, beside, {"paired": paired, **how})
        return
    if sides is None:
        raise ConfigError("give --real and --generated, or --real-features, --generated-features")
    if beside != Beside():
        raise ConfigError("classes, generators and texts of rows go with --real-features")
    out = out or Path("-".join(["gap", *(side.resolve().stem for side in sides)]))
    _of_folders(shared, _Given(*sides, out, pairs, paired, encoder, device), how)


@dataclass(frozen=True)
class _Given:
    """What was said about two sides that are no plain files."""

    real: Path
    generated: Path
    out: Path
    pairs: Path | None
    by_name: bool
    encoder: str | None
    device: str


def _of_folders(shared: Shared, given: _Given, how: dict[str, Any]) -> None:
    from gmail_align.gap.prepare import Source, check_side, encoder_at_hand, prepare

    if given.pairs is not None and given.by_name:
        raise ConfigError("--pairs and --paired both say what belongs together: give one")
    pairs = None if given.pairs is None else load(given.pairs, "pairs")
    sides, encoder = (given.real, given.generated), given.encoder
    if encoder is None and any(check_side(side, True) != "features" for side in sides):
        encoder = encoder_at_hand()
        if encoder is not None:
            say(f"no --encoder is named: taking {encoder}, which is on this machine")
    for side in sides:
        check_side(side, encoder is not None)
    if shared.dry_run:
        said = {"real": given.real, "generated": given.generated, "pairs": given.pairs}
        shared.show_plan("gap", given.out, how["config"], **said)
        return
    source = Source(
        given.real,
        given.generated,
        given.out.with_name(f"{given.out.name}-features"),
        pairs,
        given.by_name,
        how["config"].max_pairs,
        how["seed"],
    )
    ready = prepare(source, _encoder(encoder, given.device))
    _of_artifacts(shared, ready, given.out, how)


def _encoder(name: str | None, device: str) -> GmailEncoder | None:
    if name is None:
        return None
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.runtime import resolve_device

    return GmailEncoder.from_pretrained(model_of(name, "clip")).to(resolve_device(device))


def _of_artifacts(shared: Shared, ready: Prepared, out: Path, how: dict[str, Any]) -> None:
    """Measure features, and write the page once."""
    from gmail_align.features.store import read_features
    from gmail_align.gap.run import measure_gap

    features = ready.real, ready.generated
    result = measure_gap(*features, ready.pairs, out, known=ready.known, **how)
    body = json.loads(result.path("result.json").read_text(encoding="utf-8"))
    page = out / "report" / "index.html"
    if not page.exists():
        from gmail_align.report.gap import write_gap_report

        arrays = [read_features(one).array for one in features]
        write_gap_report(body, (arrays[0], arrays[1]), out / "report")
    shared.show_artifact(result)
    if not shared.json and not shared.quiet:
        typer.echo(f"{body['advice']['sentence']}\n{page}")


def _of_files(
    shared: Shared, files: tuple[Path, Path], out: Path | None, beside: Beside, how: dict[str, Any]
) -> None:
    """Measure files; with an OUT, the result is ``OUT/result.json`` with the page beside it."""
    from gmail_align.gap.files import gap_of_files

    if shared.dry_run:
        named = {"files": [str(path) for path in files]}
        shared.show_plan("gap", out or Path("standard output"), **named, **how)
        return
    refuse_other(out)
    found = gap_of_files(*files, beside=beside, **how)
    lines = [*answer_lines(found), found["advice"]["sentence"]]
    if out is not None:
        from gmail_align.artifacts import write_json
        from gmail_align.features.arrays import load_features
        from gmail_align.report.gap import write_gap_report

        write_json(out / "result.json", found)
        arrays = load_features(files[0]), load_features(files[1])
        lines.append(str(write_gap_report(found, arrays, out / "report")))
    shared.show(found, "\n".join(lines))


def _both(first: str, a: Path | None, second: str, b: Path | None) -> tuple[Path, Path] | None:
    """Return two paths that only go together; None without either.

    Raises:
        ConfigError: one is missing.
    """
    if a is not None and b is not None:
        return a, b
    if a is None and b is None:
        return None
    raise ConfigError(f"{first if a is None else second} is missing: give both")
