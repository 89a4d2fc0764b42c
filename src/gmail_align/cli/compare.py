"""``gmail-align compare``: paired differences between two results or two files of predictions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gmail_align.cli.evaluate_answers import Compat, Rule, reading_of
from gmail_align.cli.evaluate_captions import Metrics, Vectors, chosen_metrics, word_vectors
from gmail_align.cli.on_files import OutOrNot, Subset
from gmail_align.cli.options import Seed
from gmail_align.cli.shared import Shared, command
from gmail_align.errors import ConfigError

if TYPE_CHECKING:
    from gmail_align.evaluation.answers import Reading
    from gmail_align.evaluation.items import Items


@command
def compare(
    shared: Shared,
    a: Annotated[Path, typer.Argument(metavar="A", help="A result's folder, or predictions.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What it is compared with.")],
    references: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A and B are captions: score them against these."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A and B are responses: score them by these answers."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Name of the protocol, where predictions are scored.")
    ] = None,
    metrics: Metrics = None,
    vectors: Vectors = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Captions: only images that both predicted.")
    ] = False,
    rule: Rule = "zeroshot",
    compat: Compat = False,
    subset: Subset = False,
    out: OutOrNot = None,
    seed: Seed = 0,
) -> None:
    """Say how much better A is than B in every metric, on the same images or questions.

    A and B are folders that `gmail-align evaluate ... --out` made, or predictions to be scored
    against --references (captions) or --answers. Intervals are of the difference, paired.
    """
    shared.refuse_configuration()
    if references is not None and answers is not None:
        raise ConfigError("--references are for captions and --answers for responses: give one")
    if shared.dry_run:
        shared.show_plan("compare", out or Path("standard output"), a=a, b=b)
        return
    from gmail_align.evaluation.compare import compare_items

    start, wanted = time.monotonic(), chosen_metrics(metrics)
    unavailable: dict[str, str] = {}
    if references is not None:
        name = protocol or "captions"
        (first, second), unavailable = _captions(
            (a, b), references, name, wanted, partial=partial, vectors=vectors
        )
    elif answers is not None:
        reading, name = reading_of(rule, compat, None), protocol or "answers"
        first, second = (_answers(path, answers, name, reading, subset=subset) for path in (a, b))
    else:
        first, second = _kept(a, b, protocol)
    found = compare_items(
        first, second, metrics=wanted, unavailable=unavailable, seed=seed, start=start
    )
    if out is not None:
        from gmail_align.artifacts import write_json

        write_json(out / "comparison.json", found)
    shared.show(found, "\n".join(_lines(found, a, b)))


def _captions(
    paths: Sequence[Path],
    references: Path,
    protocol: str,
    metrics: list[str] | None,
    *,
    partial: bool,
    vectors: str | None,
) -> tuple[list[Items], dict[str, str]]:
    from gmail_align.evaluation.caption_files import CaptionOptions, caption_items
    from gmail_align.metrics.captions import METRICS

    if vectors is None and "WMD" in (metrics or ()):
        vectors = "references"
    options = CaptionOptions(metrics or METRICS, protocol, partial, word_vectors(vectors))
    return caption_items(paths, references, options)


def _answers(path: Path, answers: Path, protocol: str, reading: Reading, *, subset: bool) -> Items:
    from gmail_align.evaluation.answers import answers_of_files

    return answers_of_files(path, answers, protocol=protocol, reading=reading, subset=subset)[1]


def _kept(a: Path, b: Path, protocol: str | None) -> tuple[Items, Items]:
    from gmail_align.evaluation.items import read_items

    for path in (a, b):
        if path.suffix in (".json", ".jsonl"):
            raise ConfigError(
                f"{path} is no folder of a result: say what predictions are scored by, "
                "--references (captions) or --answers"
            )
    if protocol is not None:
        raise ConfigError("results have a --protocol of their own: leave it out")
    return read_items(a), read_items(b)


def _lines(found: Mapping[str, Any], a: Path, b: Path) -> list[str]:
    """Lay out a comparison: a line a metric, and what it shows."""
    lines = [f"{found['protocol']}, {found['n']['items']} items: {a} minus {b}"]
    for name, value in found["metrics"].items():
        low, high = found["intervals"][name]
        sides = f"{found['a'][name]:.4f} - {found['b'][name]:.4f}"
        if low is None or high is None:
            lines.append(f"  {name:24} {sides} = {value:+.4f}")
            continue
        better = "A" if low > 0 else "B"
        shown = "no difference shown" if low <= 0 <= high else f"{better} is better"
        lines.append(f"  {name:24} {sides} = {value:+.4f}  ({low:+.4f} to {high:+.4f})  {shown}")
    lines += [f"  {name:24} unavailable: {why}" for name, why in found["unavailable"].items()]
    return lines
