"""``gmail-align study``: the tables of the paper, each by its name."""

from __future__ import annotations

from gmail_align.cli.shared import Shared, command
from gmail_align.studies.run import StudyOptions


@command
def study(shared: Shared, name: str, /, options: StudyOptions) -> None:
    """Run a study: a table of the paper with seeds and intervals, beside the paper's numbers.

    All studies share one work folder, and whatever two of them need is made once. A study that was
    killed goes on when it is run again. It ends with the table as md, tex, csv and html, and a
    verdict for each claim. At the paper's scale it prints the plan if data or models are missing.

    Args:
        name: A study's name or TOML file; list lists them, and all runs all and writes a book.
    """
    from gmail_align.studies import book

    if name == "list":
        rows = book.list_studies(options)
        shared.show({"studies": rows}, "\n".join(book.list_lines(rows)))
    elif plans := (book.plans if shared.dry_run else book.blocked_plans)(name, options):
        shared.show({"plans": plans}, "\n".join(book.plan_text(one) for one in plans))
    elif name == "all":
        made = book.run_all(options)
        shared.show(made, f"book: {made['book']}")
    else:
        made = book.run_one(name, options)
        shared.show(made, "\n".join([*book.verdict_lines(made), f"table: {made['page']}"]))
