"""``gmail-align report``: a finished run as tables, figures and one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gmail_align.cli.shared import Shared, command
from gmail_align.errors import ArtifactError


@command
def report(
    shared: Shared,
    work: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the report; DIR/report.")
    ] = None,
) -> None:
    """Write a finished run's report again: index.html, tables/ and figures/."""
    shared.refuse_configuration()
    title, result = read_run(work)
    target = out or work / "report"
    if shared.dry_run:
        shared.show_plan("report", target, work=work, title=title)
        return
    from gmail_align.report.gather import gather_report
    from gmail_align.report.page import write_report

    again = f"gmail-align run {result.get('recipe', 'RECIPE')} --work {work.name}"
    page = write_report(gather_report(title, again, work, result), target)
    shared.show({"report": str(page)}, f"report: {page}")


def read_run(work: Path) -> tuple[str, dict[str, Any]]:
    """Return the title and the result of a finished run.

    Raises:
        ArtifactError: the folder holds none.
    """
    try:
        recipe = json.loads((work / "recipe.json").read_text(encoding="utf-8"))
        result = json.loads((work / "result.json").read_text(encoding="utf-8"))
        return str(recipe["recipe"]["title"]), dict(result)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{work} holds no finished run: make one with gmail-align run or demo"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"the run in {work} is damaged ({error}): run it again") from error
