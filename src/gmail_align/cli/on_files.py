"""Commands on plain files: which options belong together, and how a result is shown and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmail_align.cli.shared import Shared
from gmail_align.errors import ConfigError

if TYPE_CHECKING:
    from gmail_align.evaluation.items import Items

OutOrNot = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder of what is made; files may do without."),
]
Subset = Annotated[
    bool, typer.Option("--subset", help="What is scored is a part of the --protocol's set.")
]


def one_door(
    artifacts: Mapping[str, Path | None], files: Mapping[str, Path | None], out: Path | None
) -> tuple[bool, list[Path]]:
    """Say whether a command was given files (True) or artifacts, and return their paths.

    Args:
        artifacts: Option -> value of the one door.
        files: Option -> value of the other.
        out: Where the result goes; only files can do without.

    Raises:
        ConfigError: options of both were given, or one of the chosen door's is missing.
    """
    by_artifact, by_file = (
        [name for name, value in options.items() if value is not None]
        for options in (artifacts, files)
    )
    if by_artifact and by_file:
        raise ConfigError(
            f"{by_artifact[0]} takes artifacts and {by_file[0]} files: give {', '.join(artifacts)} "
            f"or {', '.join(files)}"
        )
    wanted = dict(files) if by_file else {**artifacts, "--out": out}
    missing = [name for name, value in wanted.items() if value is None]
    if missing:
        other = "" if by_file or by_artifact else f", or {', '.join(files)} for plain files"
        raise ConfigError(f"{missing[0]} is missing: give {', '.join(wanted)}{other}")
    chosen = files if by_file else artifacts
    return bool(by_file), [value for value in chosen.values() if value is not None]


def show_answer(shared: Shared, found: Mapping[str, Any], out: Path | None) -> None:
    """Print a result of plain files, and keep it as ``OUT/result.json`` where there is an OUT."""
    from gmail_align.artifacts import write_json

    if out is not None and not shared.dry_run:
        write_json(out / "result.json", dict(found))
    shared.show(found, "\n".join(answer_lines(found)))


def keep_answer(found: Mapping[str, Any], items: Items, out: Path | None) -> None:
    """Keep a result of plain files, and its items for ``gmail-align compare``, where there is OUT.

    Raises:
        ConfigError: OUT holds something else.
    """
    if out is None:
        return
    from gmail_align.artifacts import write_json
    from gmail_align.evaluation.items import ITEMS, write_items

    refuse_other(out)
    write_json(out / "result.json", dict(found))
    write_items(out / ITEMS, items)


def refuse_other(out: Path | None) -> None:
    """Refuse a folder that holds anything but a result of plain files.

    Raises:
        ConfigError: it does.
    """
    known = {"items.safetensors", "result.json", "report"}
    if out is not None and out.exists() and any(path.name not in known for path in out.iterdir()):
        raise ConfigError(f"{out} holds other things than a result: choose another --out")


def answer_lines(found: Mapping[str, Any]) -> list[str]:
    """Lay out a result of plain files: its protocol and n, then one line a metric."""
    n = found["n"]
    kind = "pairs" if found["protocol"] == "gap_paired" else "images"
    counts = n if isinstance(n, Mapping) else {kind: n}
    lines = [
        ", ".join([found["protocol"], *(f"{number} {what}" for what, number in counts.items())])
    ]
    for name, value in found["metrics"].items():
        bounds = found["intervals"].get(name, (None, None))
        known = bounds[0] is not None and bounds[1] is not None
        interval = f"  ({bounds[0]:.4f} to {bounds[1]:.4f})" if known else ""
        lines.append(f"  {name:24} {value:.4f}{interval}")
    lines += [f"  {name:24} unavailable: {why}" for name, why in found["unavailable"].items()]
    return lines
