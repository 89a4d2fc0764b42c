"""``gmail-align gap``: how far generated images are from real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmail_align.artifacts import Artifact, load
from gmail_align.cli.shared import Device, Out, Seed, Shared, command, model_of
from gmail_align.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from gmail_align.gap.config import GapConfig


@command
def gap(
    shared: Shared,
    real: Annotated[
        Path, typer.Option(metavar="DIR", help="Real images or their features (or a .npy file).")
    ],
    generated: Annotated[Path, typer.Option(metavar="DIR", help="The same of generated images.")],
    out: Out,
    pairs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pairs; adds what only pairs can tell.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Encoder, for images; features go to OUT-features."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure the gap between real and generated images, before anything is trained on it."""
    from gmail_align.gap.config import GapConfig

    config = shared.build(GapConfig)
    if real.suffix == generated.suffix == ".npy":
        _gap_of_files(shared, (real, generated), out, config, seed)
        return
    paired = None if pairs is None else _pair_ids(load(pairs, "pairs"))
    inputs = {"real": load(real), "generated": load(generated)}
    _check(inputs, encoder)
    if shared.dry_run:
        shared.show_plan("gap", out, real=real, generated=generated, pairs=pairs, config=config)
        return
    from gmail_align.gap.run import measure_gap

    home = out.with_name(f"{out.name}-features")
    features = {
        name: artifact
        if artifact.kind == "features"
        else _extract(artifact, str(encoder), home / name, device)
        for name, artifact in inputs.items()
    }
    shared.show_artifact(measure_gap(**features, pairs=paired, out=out, config=config, seed=seed))


def _check(inputs: dict[str, Artifact], encoder: str | None) -> None:
    for artifact in inputs.values():
        if artifact.kind not in ("images", "features"):
            raise ArtifactError(
                f"{artifact.folder} holds {artifact.kind}, but images or features are needed here"
            )
        if artifact.kind == "images" and encoder is None:
            raise ConfigError(f"{artifact.folder} holds images: name an --encoder to compare them")


def _extract(images: Artifact, encoder: str, out: Path, device: str) -> Artifact:
    from gmail_align.encoders.clip import GmailEncoder
    from gmail_align.encoders.route import Route
    from gmail_align.features.run import extract_images
    from gmail_align.runtime import resolve_device

    model = GmailEncoder.from_pretrained(model_of(encoder, "clip")).to(resolve_device(device))
    return extract_images(images, model, Route.FROZEN, out)


def _pair_ids(pairs: Artifact) -> list[tuple[str, str]]:
    from gmail_align.data.pairs import read_pairs

    return [(pair.real_image_id, pair.generated_image_id) for pair in read_pairs(pairs)]


def _gap_of_files(
    shared: Shared, files: tuple[Path, Path], out: Path, config: GapConfig, seed: int
) -> None:
    """Measure the gap between two files of numpy; the result is one file, ``OUT/result.json``."""
    from gmail_align.artifacts import write_json
    from gmail_align.gap.files import gap_of_files

    found: dict[str, Any] = gap_of_files(*files, config=config, seed=seed)
    if not shared.dry_run:
        write_json(out / "result.json", found)
    shared.show(found, f"{out / 'result.json'}: gap of {files[0]} and {files[1]}")
