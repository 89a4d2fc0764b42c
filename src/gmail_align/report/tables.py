"""Tables and their three file formats: Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.names import PERCENT, Unit
from gmail_align.report.numbers import NOTHING, count, interval, number

Cell = Estimate | int | str | None


@dataclass(frozen=True)
class Column:
    """One column: its heading and how its estimates are written."""

    label: str
    unit: Unit = PERCENT
    text: bool = False
    """Left-aligned words instead of right-aligned numbers."""


@dataclass(frozen=True)
class Row:
    """One row: what it is about, a second line on that, its cells and its mark.

    Attributes:
        label: Heading of the row.
        cells: One for each column.
        detail: A second, quieter line under the heading.
        mark: ``best``, ``ours``, ``bound`` or nothing.
        strong: Columns whose cell stands out.
        unit: How this row's estimates are written, where it differs from the column's.
    """

    label: str
    cells: Sequence[Cell]
    detail: str = ""
    mark: str = ""
    strong: frozenset[int] = frozenset()
    unit: Unit | None = None


class Shown(NamedTuple):
    """A cell as text: what it says, its interval, and the number that the page sorts by."""

    text: str
    interval: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table; ``stem`` names its files."""

    stem: str
    title: str
    head: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    detailed: bool = False
    """The rows' second lines are part of their names, wherever there is room for names only."""

    def shown(self, row: Row) -> list[Shown]:
        """Write the cells of one row."""
        pairs = zip(row.cells, self.columns, strict=True)
        return [shown(cell, row.unit or column.unit) for cell, column in pairs]

    def files(self) -> dict[str, bytes]:
        """Return the table as files by name."""
        texts = {"md": markdown(self), "tex": latex(self), "csv": comma_separated(self)}
        return {
            f"{self.stem}.{end}": text.encode("utf-8", "replace") for end, text in texts.items()
        }


def shown(cell: Cell, unit: Unit) -> Shown:
    """Write a cell."""
    if cell is None:
        return Shown(NOTHING)
    if isinstance(cell, Estimate):
        return Shown(number(cell.value, unit), interval(cell, unit), cell.value)
    return Shown(count(cell), value=cell) if isinstance(cell, int) else Shown(cell)


def markdown(table: Table) -> str:
    """Write the table as GitHub Markdown; the best row is bold."""
    heads = [table.head, *(column.label for column in table.columns)]
    rules = ["---", *("---" if column.text else "---:" for column in table.columns)]
    lines = [f"**{_md(table.title)}**", "", _md_row(_md(head) for head in heads), _md_row(rules)]
    for row in table.rows:
        label = f"{row.label} ({row.detail})" if row.detail else row.label
        cells = [
            f"{cell.text} ({cell.interval})" if cell.interval else cell.text
            for cell in table.shown(row)
        ]
        texts = [_md(text) for text in [label, *cells]]
        bold = {index + 1 for index in row.strong} | ({0} if row.mark == "best" else set())
        lines.append(_md_row(f"**{t}**" if k in bold else t for k, t in enumerate(texts)))
    if table.note:
        lines += ["", _md(table.note)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """Write the table for LaTeX with the booktabs package."""
    heads = [table.head, *(column.label for column in table.columns)]
    shape = "l" + "".join("l" if column.text else "r" for column in table.columns)
    lines = [rf"% {_one_line(table.title)}", rf"\begin{{tabular}}{{{shape}}}", r"\toprule"]
    lines += [_tex_row(map(_tex, heads)), r"\midrule"]
    for row in table.rows:
        texts = [
            _tex(cell.text) + (rf" {{\scriptsize[{_tex(cell.interval)}]}}" if cell.interval else "")
            for cell in table.shown(row)
        ]
        strong = [rf"\textbf{{{t}}}" if k in row.strong else t for k, t in enumerate(texts)]
        label = f"{row.label} {row.detail}" if table.detailed else row.label
        lines.append(_tex_row([_tex(label), *strong]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def comma_separated(table: Table) -> str:
    """Write the table as CSV; an estimate takes four columns, and no text can be a formula."""
    wide = [
        any(isinstance(row.cells[k], Estimate) for row in table.rows)
        for k in range(len(table.columns))
    ]
    heads = [table.head, "detail"]
    for column, is_wide in zip(table.columns, wide, strict=True):
        tails = ("", " low", " high", " n") if is_wide else ("",)
        heads += [column.label + tail for tail in tails]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_csv, heads))
    for row in table.rows:
        fields: list[str] = [_csv(row.label), _csv(row.detail)]
        for cell, column, is_wide in zip(row.cells, table.columns, wide, strict=True):
            fields += _csv_cell(cell, row.unit or column.unit, is_wide)
        writer.writerow(fields)
    return file.getvalue()


def _csv_cell(cell: Cell, unit: Unit, wide: bool) -> list[str]:
    if isinstance(cell, Estimate):
        numbers = (cell.value, cell.low, cell.high)
        digits = unit.digits + 2
        scaled = [
            f"{value * unit.scale:.{digits}f}" if math.isfinite(value) else "" for value in numbers
        ]
        return [*scaled, str(cell.n) if cell.n else ""]
    text = "" if cell is None else str(cell) if isinstance(cell, int) else _csv(cell)
    return [text, "", "", ""] if wide else [text]


def _csv(text: str) -> str:
    """Keep a spreadsheet from reading text as a formula (OWASP, "CSV injection")."""
    risky = text.lstrip().startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\r", "\n"))
    return "'" + text if risky else text


_MD_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]|~#$])")
_TEX_SPECIAL: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "\u00a0": "~",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


def _one_line(text: str) -> str:
    return re.sub(r"\s*[\t\r\n\f\v]\s*", " ", text).strip()


def _md(text: str) -> str:
    safe = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MD_SPECIAL.sub(r"\\\1", safe)


def _md_row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _tex(text: str) -> str:
    return "".join(_TEX_SPECIAL.get(sign, sign) for sign in _one_line(text))


def _tex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"
