"""``gmail-align evaluate answers``: a multimodal model's answers to ScienceQA or MMMU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from gmail_align.cli.on_files import OutOrNot, Subset, answer_lines, keep_answer
from gmail_align.cli.shared import Shared, command
from gmail_align.errors import ConfigError
from gmail_align.progress import say

if TYPE_CHECKING:
    from gmail_align.evaluation.answers import Reading

Rule = Annotated[
    str,
    typer.Option(
        help="How ScienceQA's letters are read: zeroshot (the letter alone, or 'B.' first) or "
        "finetuned (also 'The answer is B.')."
    ),
]
Compat = Annotated[
    bool,
    typer.Option(
        "--compat",
        help="As the published scripts: MMMU draws a choice where none is to be read, and a table "
        "of id to answer is taken as read; ScienceQA's missing responses are wrong.",
    ),
]


@command
def answers(
    shared: Shared,
    protocol: Annotated[
        str,
        typer.Option(
            help="scienceqa_img_test, scienceqa_test or mmmu_val; or a label for a set of your own."
        ),
    ],
    predictions: Annotated[
        Path, typer.Option(metavar="FILE", help="Responses: id to text, records, or JSON lines.")
    ],
    answers: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Right answers: ScienceQA's problems.json, id to letter, MMMU's dictionary, or a "
            "folder of imported questions.",
        ),
    ],
    rule: Rule = "zeroshot",
    compat: Compat = False,
    subset: Subset = False,
    out: OutOrNot = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the bootstrap [0], and of MMMU's random choices [42] by --compat."),
    ] = None,
) -> None:
    """Score answers: accuracy over all questions, by subject, and how many could not be read."""
    shared.refuse_configuration()
    if shared.dry_run:
        how = {"predictions": predictions, "answers": answers, "rule": rule, "compat": compat}
        shared.show_plan("evaluate answers", out or Path("standard output"), **how)
        return
    from gmail_align.data.protocols import PROTOCOLS
    from gmail_align.evaluation.answers import answers_of_files

    if protocol not in PROTOCOLS:
        say(f"{protocol!r} is no known protocol: it is kept as a label, and no counts are asserted")
    found, items = answers_of_files(
        predictions,
        answers,
        protocol=protocol,
        reading=reading_of(rule, compat, seed),
        subset=subset,
        seed=seed or 0,
    )
    keep_answer(found, items, out)
    shown = {name: f"{one['value']:.4f} of {one['n']}" for name, one in found["groups"].items()}
    lines = [*answer_lines(found), *(f"    {name:38} {text}" for name, text in shown.items())]
    lines.append(f"  {found['unparsed']} responses without an answer (rule: {found['rule']})")
    shared.show(found, "\n".join(lines))


def reading_of(rule: str, compat: bool, seed: int | None) -> Reading:
    """Return how answers are to be read.

    Raises:
        ConfigError: there is no such rule.
    """
    from gmail_align.evaluation.answers import Reading
    from gmail_align.metrics import scienceqa
    from gmail_align.metrics.answers import MMMU_SEED

    for known in get_args(scienceqa.Rule):
        if rule == known:
            return Reading(known, compat, MMMU_SEED if seed is None else seed)
    raise ConfigError(f"there is no rule {rule!r}: use {' or '.join(get_args(scienceqa.Rule))}")
