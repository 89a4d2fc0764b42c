"""``gmail-align gap``: how far generated images are from real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmail_align.artifacts import Artifact, load
from gmail_align.cli.options import Device, Seed
from gmail_align.cli.shared import Shared, command, model_of
from gmail_align.errors import ConfigError
from gmail_align.gap.config import GapConfig
from gmail_align.progress import say

if TYPE_CHECKING:
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.features.store import Features
    from gmail_align.gap.feature_sets import Annotations
    from gmail_align.results import Result

AnyEncoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="MODEL",
        help="Encoder, for images. [an OpenAI CLIP that is on this machine] Features go to "
        "OUT-features.",
    ),
]


@dataclass(frozen=True)
class RowLabels:
    """What is known of the rows of plain files."""

    real_classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The class of each row of R, one a line.")
    ] = None
    generated_classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The class of each row of G.")
    ] = None
    generators: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What made each row of G, one a line.")
    ] = None
    text_features: Annotated[
        Path | None,
        typer.Option(metavar="T.npy", help="Captions of the pairs, or of the classes by name."),
    ] = None

    def annotations(self, real: Features, generated: Features, pairs: int | None) -> Annotations:
        """Read the files.

        Args:
            real: The rows of real images.
            generated: The rows of generated images.
            pairs: How many pairs there are; None without pairs.

        Raises:
            DataError: a file cannot be read, or does not have a label for each row, or a text for
                each pair or class.
        """
        from gmail_align.features.store import open_features
        from gmail_align.gap.feature_sets import Annotations, class_texts

        known = Annotations(
            _labels(self.real_classes, real, "class"),
            _labels(self.generated_classes, generated, "class"),
            _labels(self.generators, generated, "generator"),
        )
        if self.text_features is None:
            return known
        return class_texts(known, open_features(self.text_features), pairs)


@dataclass(frozen=True)
class Matching:
    """What belongs together."""

    pairs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pairs; adds what only pairs can tell.")
    ] = None
    paired: Annotated[
        bool, typer.Option("--paired", help="Rows of the files, or files of one name, are pairs.")
    ] = False


@dataclass(frozen=True)
class Place:
    """Where the result goes and what it is drawn by."""

    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the result. [gap-REAL-GENERATED]"),
    ] = None
    seed: Seed = 0
    device: Device = "auto"


@command
def gap(
    shared: Shared,
    real: Annotated[
        Path,
        typer.Option(
            "--real",
            "--real-features",
            metavar="PATH",
            help="Real images: a folder, a zip, or an artifact; or their features, R.npy.",
        ),
    ],
    generated: Annotated[
        Path,
        typer.Option(
            "--generated",
            "--generated-features",
            metavar="PATH",
            help="The same of generated images.",
        ),
    ],
    matching: Matching,
    rows: RowLabels,
    place: Place,
    encoder: AnyEncoder = None,
    *,
    config: GapConfig,
) -> None:
    """Measure the gap between real and generated images, before anything is trained on it.

    Give two folders (or zips, or artifacts), or features in two .npy files. Subfolders of images
    are read as classes, and above those as generators; captions are found in captions.jsonl or in a
    .txt beside each image. OUT/report/index.html is a page of its own.
    """
    by_file = [path.suffix == ".npy" for path in (real, generated)]
    if any(by_file) and (matching.pairs or encoder or not all(by_file)):
        raise ConfigError("two .npy files of features need no --pairs and no --encoder")
    if not any(by_file) and rows != RowLabels():
        raise ConfigError("classes, generators and texts of rows go with two .npy files")
    if all(by_file):
        prepared = _files(shared, (real, generated), matching.paired, rows, place)
    else:
        prepared = _folders(shared, (real, generated), matching, encoder, place, config)
    if prepared is None:
        return
    from gmail_align.gap.run import measure_gap

    result = measure_gap(
        prepared.real,
        prepared.generated,
        prepared.pairs,
        prepared.out,
        annotations=prepared.annotations,
        config=config,
        seed=place.seed,
        write_page=_write_page,
    )
    page = [] if prepared.out is None else [str(prepared.out / "report" / "index.html")]
    shared.show_result(result, result.details["advice"]["sentence"], *page)


@dataclass(frozen=True)
class _Ready:
    """What is measured."""

    real: Path | Artifact
    generated: Path | Artifact
    pairs: Sequence[tuple[str, str]] | None
    annotations: Annotations
    out: Path | None


def _files(
    shared: Shared, paths: tuple[Path, Path], paired: bool, rows: RowLabels, place: Place
) -> _Ready | None:
    """Open what is known of the rows of two files; None for a dry run."""
    if shared.dry_run:
        shared.show_plan("gap", place.out, files=list(map(str, paths)))
        return None
    from gmail_align.features.store import open_features
    from gmail_align.metrics.ranks import require_pairs

    pairs = None
    real, generated = (open_features(path) for path in paths)
    if paired:
        require_pairs(real=real.array, generated=generated.array)
        pairs = [(name, name) for name in real.ids]
    annotations = rows.annotations(real, generated, None if pairs is None else len(pairs))
    return _Ready(*paths, pairs, annotations, place.out)


def _folders(
    shared: Shared,
    paths: tuple[Path, Path],
    matching: Matching,
    encoder: str | None,
    place: Place,
    config: GapConfig,
) -> _Ready | None:
    """Import and extract what two folders, zips or artifacts hold; None for a dry run."""
    from gmail_align.gap.prepare import Source, check_side, encoder_at_hand, prepare

    if matching.pairs is not None and matching.paired:
        raise ConfigError("--pairs and --paired both say what belongs together: give one")
    out = place.out or Path("-".join(["gap", *(path.resolve().stem for path in paths)]))
    pairs = None if matching.pairs is None else load(matching.pairs, "pairs")
    if encoder is None and any(check_side(path, True) != "features" for path in paths):
        encoder = encoder_at_hand()
        if encoder is not None:
            say(f"no --encoder is named: taking {encoder}, which is on this machine")
    for path in paths:
        check_side(path, encoder is not None)
    if shared.dry_run:
        shared.show_plan("gap", out, config, real=paths[0], generated=paths[1])
        return None
    home = out.with_name(f"{out.name}-features")
    source = Source(*paths, home, pairs, matching.paired, config.max_pairs, place.seed)
    ready = prepare(source, _encoder(encoder, place.device))
    return _Ready(ready.real, ready.generated, ready.pairs, ready.known, out)


def _labels(path: Path | None, rows: Features, what: str) -> dict[str, str]:
    from gmail_align.data.labels import open_labels

    if path is None:
        return {}
    return dict(zip(rows.ids, open_labels(path).of(rows.ids, what), strict=True))


def _encoder(name: str | None, device: str) -> GmailEncoder | None:
    if name is None:
        return None
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.runtime import resolve_device

    return GmailEncoder.from_pretrained(model_of(name, "clip")).to(resolve_device(device))


def _write_page(result: Result, features: tuple[Any, Any], folder: Path) -> None:
    from gmail_align.report.gap import write_gap_report

    write_gap_report(result.to_json(), features, folder / "report")
