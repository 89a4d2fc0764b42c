from __future__ import annotations

import csv
import io

from gmail_align.metrics.bootstrap import Estimate
from gmail_align.report.names import DIFFERENCE, PLAIN, Unit
from gmail_align.report.numbers import count, duration, interval, number
from gmail_align.report.tables import Column, Row, Table, comma_separated, latex, markdown

from .conftest import EVIL

TABLE = Table(
    "t",
    "A table",
    "Name",
    [Column("CIDEr ×100"), Column("Seen"), Column("Said", text=True)],
    [
        Row("ours", [Estimate(-0.123, -0.2, -0.05, 9), 1200, "=cmd()"], "a detail", "best"),
        Row(EVIL, [None, None, "@x"], strong=frozenset({0})),
        Row("-lead", [Estimate(0.5, float("nan"), float("nan"), 0), 3, "\t+1"]),
    ],
    note="A note.",
)


def test_numbers() -> None:
    assert number(0.1234) == "12.3"
    assert number(-0.5, PLAIN) == "−0.500"
    assert number(0.05, DIFFERENCE) == "+5.0"
    assert number(-0.00001, DIFFERENCE) == "0.0"
    assert number(float("nan")) == "–"
    assert number(2.0, Unit(1, 0)) == "2"
    assert interval(Estimate(0.5, 0.4, 0.6, 3)) == "40.0–60.0"
    assert interval(Estimate(0.0, -0.1, 0.1, 3)) == "−10.0\u00a0to\u00a010.0"
    assert interval(Estimate(0.0, float("nan"), 0.1, 3)) == ""
    assert count(12345) == "12,345"


def test_durations() -> None:
    spans = [3.26, 59.6, 75, 3599.7, 7322]
    assert [duration(s) for s in spans] == [
        "3.3 s",
        "1 min 00 s",
        "1 min 15 s",
        "1 h 00 min",
        "2 h 02 min",
    ]


def test_csv_has_no_formula_and_keeps_negative_numbers() -> None:
    heads, *rows = csv.reader(io.StringIO(comma_separated(TABLE)))
    assert heads[2:6] == ["CIDEr ×100", "CIDEr ×100 low", "CIDEr ×100 high", "CIDEr ×100 n"]
    assert rows[0] == ["ours", "a detail", "-12.300", "-20.000", "-5.000", "9", "1200", "'=cmd()"]
    assert rows[1][0] == EVIL and rows[1][2:] == ["", "", "", "", "", "'@x"]
    assert rows[2][0] == "'-lead" and rows[2][-1] == "'\t+1" and rows[2][3] == ""


def test_markdown_is_escaped_and_marks_the_best() -> None:
    text = markdown(TABLE)
    assert "| **ours (a detail)** | −12.3 (−20.0\u00a0to\u00a0−5.0) | 1,200 | =cmd() |" in text
    assert "<script" not in text and "\\|" in text and "**–**" in text
    assert {line.replace("\\|", "").count("|") for line in text.splitlines()[2:-2]} == {5}


def test_latex_is_escaped() -> None:
    text = latex(TABLE)
    assert r"$-$12.3 {\scriptsize[$-$20.0~to~$-$5.0]} & 1,200" in text
    assert r"\textless{}script\textgreater{}" in text
    assert r"\& =HYPERLINK" in text and r"\$\textbackslash{}alpha\$" in text
    assert text.count(r"\\") == 4
