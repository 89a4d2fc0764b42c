"""Tables of results inside pages, each traced to its result by a fingerprint.

A block of a page names a result and its fingerprint:

    <!-- result: studies/table-6/result.json 0123456789abcdef -->
    ...
    <!-- end of result -->

``columns=CIDEr,real`` after the name keeps those columns alone. In the place of a name,
``verdicts=studies/table-*`` stands for the verdicts of those studies. ``python docs/tables.py``
writes the tables of every block again, from the result beside the page. Nobody types a number
between the two lines, and a test checks it. It also draws the plots that pages show.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gmail_align.report.tables import markdown
from gmail_align.studies.plots import plot_files
from gmail_align.studies.result import RESULT, read_study_result
from gmail_align.studies.tables import tables, verdicts_table

DOCS = Path(__file__).resolve().parent
PAGES = (DOCS.parent / "README.md", DOCS / "evidence.md", DOCS / "paper-tables.md")
PLOTS = {"budget": "budget-plot-1.svg", "collapse": "collapse-plot-1.svg"}
"""Study -> the plot of it that a page shows."""
VERDICTS = re.compile(r"<!-- result: verdicts=(\S+) -->\n.*?<!-- end of result -->", re.S)
BLOCK = re.compile(
    r"<!-- result: (?!verdicts)(\S+)(?: columns=(\S+))?(?: (\w+))? -->\n.*?<!-- end of result -->",
    re.S,
)


def filled(text: str) -> str:
    """Return a page's text with the tables of every block as their results say."""
    text = VERDICTS.sub(lambda block: _verdicts(block[1]), text)
    return BLOCK.sub(lambda block: _block(block[1], block[2]), text)


def _verdicts(pattern: str) -> str:
    folders = sorted(
        DOCS.glob(pattern), key=lambda path: (-ord(path.name[0]), len(path.name), path.name)
    )
    table = verdicts_table([read_study_result(folder / RESULT) for folder in folders])
    return f"<!-- result: verdicts={pattern} -->\n\n{markdown(table)}\n<!-- end of result -->"


def _block(name: str, columns: str | None) -> str:
    result = shown = read_study_result(DOCS / name)
    head = f"<!-- result: {name}"
    if columns is not None:
        kept = tuple(one for one in result.columns if one.name in columns.split(","))
        shown = result.model_copy(update={"columns": kept})
        head = f"{head} columns={columns}"
    body = "\n".join(markdown(table) for table in tables(shown))
    return f"{head} {result.fingerprint} -->\n\n{body}\n<!-- end of result -->"


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or PAGES:
        page.write_text(filled(page.read_text()))
    for study, name in PLOTS.items():
        made = plot_files(read_study_result(DOCS / "studies" / study / RESULT))
        (DOCS / f"{study}.svg").write_bytes(made[name])
