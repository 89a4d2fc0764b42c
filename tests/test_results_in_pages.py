"""Numbers in pages: each table of results is that of a committed result, named by fingerprint."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from gmail_align.errors import ArtifactError
from gmail_align.studies.result import RESULT, read_study_result
from gmail_align.studies.tables import tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
COMMITTED = sorted(DOCS.glob(f"studies/*/{RESULT}"))
SPEC = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
assert SPEC is not None and SPEC.loader is not None
TABLES = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TABLES)
sys.modules["docs_tables"] = TABLES


@pytest.mark.parametrize("page", TABLES.PAGES, ids=lambda page: page.name)
def test_every_table_of_results_is_that_of_its_result(page: Path) -> None:
    text = page.read_text()
    assert TABLES.filled(text) == text


def test_the_page_of_the_papers_tables_has_no_table_without_a_result() -> None:
    text = (DOCS / "paper-tables.md").read_text()
    assert TABLES.BLOCK.search(text) and TABLES.VERDICTS.search(text)
    rest = TABLES.VERDICTS.sub("", TABLES.BLOCK.sub("", text)).split("\n")
    assert [line for line in rest if line.startswith("|") and re.search(r"\d", line)] == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_results_give_the_committed_tables(path: Path) -> None:
    made = tables(read_study_result(path))
    files = {name: file for table in made for name, file in table.files().items()}
    committed = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.name != RESULT}
    assert committed == files


def test_there_are_results() -> None:
    assert COMMITTED


def test_a_changed_number_or_fingerprint_is_seen(tmp_path: Path) -> None:
    name = COMMITTED[0].relative_to(DOCS)
    right = TABLES.filled(f"<!-- result: {name} -->\n<!-- end of result -->")
    digits = re.search(r"\d+\.\d", right.split("\n", 2)[2])
    assert digits is not None
    mark = read_study_result(COMMITTED[0]).fingerprint
    for wrong in (right.replace(digits[0], "77.7"), right.replace(mark, "0123456789abcdef")):
        assert wrong != right and TABLES.filled(wrong) == right
    (tmp_path / RESULT).write_text(COMMITTED[0].read_text().replace('"seeds": ', '"seeds": 1'))
    with pytest.raises(ArtifactError):
        read_study_result(tmp_path / RESULT)
