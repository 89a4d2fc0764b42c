from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmail_align.errors import DataError, MissingExtraError
from gmail_align.report import page as page_module
from gmail_align.report.data import Curve, ReportData
from gmail_align.report.page import render, write_report
from gmail_align.report.results import all_tables

from .conftest import claim, full_data, rows

VOID = {"input", "meta", "link", "img", "br", "line", "circle", "path", "polyline"}


class Outline(HTMLParser):
    """Checks that tags nest, and keeps tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


def rendered(data: ReportData) -> str:
    return render(data, all_tables(data), {})


def test_writes_the_page_every_table_and_every_figure(report: Path) -> None:
    tables = (
        "alignment",
        "captions",
        "claims",
        "gap",
        "retrieval-some_5k",
        "rows",
        "samples",
    )
    names = {
        f"tables/{t}.{end}" for t in (*tables, "stages", "zeroshot") for end in ("md", "tex", "csv")
    }
    figures = ("headline", "pairs", "embeddings", "curves")
    names |= {f"figures/{f}.{end}" for f in figures for end in ("svg", "png")}
    result = {str(p.relative_to(report)) for p in report.rglob("*") if p.is_file()}
    assert result == names | {"index.html"}


def test_every_section_is_there_in_order(page: str) -> None:
    ids = re.findall(r'<h2 id="(\w+)"', page)
    assert ids == ["result", *page_module._HEADINGS]
    assert re.findall(r'<a href="#(\w+)"', page) == ids[1:]


def test_untrusted_text_is_escaped_everywhere(page: str) -> None:
    outline = Outline(page)
    scripts = [attributes for tag, attributes in outline.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "pairs-data"}, {}]
    assert page.count("<script") == page.count("</script>") == 2
    assert outline.text.count("<script>alert") >= 10
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)


def test_the_page_needs_nothing_else(page: str) -> None:
    outline = Outline(page)
    addresses = [
        str(value)
        for _, attributes in outline.tags
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page


def test_every_chart_has_a_title_and_every_image_an_alternative(page: str) -> None:
    for chart in re.findall(r'<svg role="img".*?</svg>', page, flags=re.DOTALL):
        assert re.search(r"<title>\s*\S", chart)
    images = [attributes for tag, attributes in Outline(page).tags if tag == "img"]
    assert len(images) == 7
    assert all(image["alt"] for image in images)


def test_light_dark_and_phone_are_served(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "max-width: 46rem" in page
    charts = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{3,6}\b|rgb\(", charts)


def test_numbers_are_shown_times_100_with_their_interval(page: str) -> None:
    text = Outline(page).text
    assert "70.0" in text and "68.0–72.0" in text
    assert "6.2 CIDEr points more than Row raw" in text
    assert "+4.2\u00a0to\u00a0+8.2" in text
    assert "0.52 before and 0.89" in text and "COCO" in text
    assert "what gmail stands for" in text


def test_the_best_row_below_the_bound_is_marked(page: str) -> None:
    best = re.findall(r'<tr class="best">\s*<th scope="row">(.*?)<', page)
    assert best == ["Row real_scarce"]


@pytest.mark.parametrize("name", [field.name for field in fields(ReportData)][2:])
def test_any_part_may_be_missing(name: str) -> None:
    empty = getattr(ReportData("t"), name)
    Outline(rendered(replace(full_data(), **{name: empty})))


@pytest.mark.parametrize(
    "name", ["rows", "claims", "encoders", "seed", "counts", "seconds", "unavailable"]
)
def test_any_part_of_the_result_may_be_missing(name: str) -> None:
    data = full_data()
    result = {key: value for key, value in data.result.items() if key != name}
    Outline(rendered(replace(data, result=result)))


def test_rows_alone_make_a_page() -> None:
    text = Outline(rendered(ReportData("t", result={"rows": rows()}))).text
    assert "Nothing is claimed." in text
    assert not re.search(r"\b(None|nan)\b", text)


def test_a_title_alone_makes_a_page(tmp_path: Path) -> None:
    write_report(ReportData("only a title"), tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"index.html"}


def test_missing_and_undefined_numbers_are_dashes() -> None:
    only = {"name": "gmail", "metrics": {"CIDEr": {"value": float("nan")}, "BLEU4": None}}
    text = Outline(rendered(ReportData("t", result={"rows": [only]}))).text
    assert "–" in text and not re.search(r"\bnan\b", text)


def test_the_same_data_gives_the_same_bytes(report: Path, tmp_path: Path) -> None:
    write_report(full_data(), tmp_path)
    for path in sorted(report.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(report)).read_bytes(), path


def test_text_that_is_no_unicode_still_makes_a_page(tmp_path: Path) -> None:
    path = write_report(ReportData("lone \ud800 surrogate"), tmp_path)
    assert "lone ? surrogate" in path.read_text(encoding="utf-8")


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    pair = replace(full_data().pairs[0], generated=b"not an image")
    with pytest.raises(DataError, match="generated image of pair 0"):
        write_report(replace(full_data(), pairs=[pair]), tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_malformed_result_is_named() -> None:
    bad = {"name": "real", "metrics": {"CIDEr": "high"}}
    with pytest.raises(DataError, match=r"metrics\.CIDEr"):
        all_tables(ReportData("t", result={"rows": [bad]}))
    with pytest.raises(DataError, match="encoders"):
        all_tables(ReportData("t", result={"encoders": {"name": "frozen"}}))
    with pytest.raises(DataError, match="value"):
        judged = {"name": "frozen", "zeroshot": {"colour": {"low": 1}}}
        all_tables(ReportData("t", result={"encoders": [judged]}))


def test_figures_are_scalable_and_undated(report: Path) -> None:
    for path in (report / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<?xml") and "<dc:date>" not in text
    assert (report / "figures" / "pairs.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_with_many_measures_is_drawn(tmp_path: Path) -> None:
    names = [f"a measure with a long name {k}" for k in range(20)]
    scores = [{"step": float(k)} | dict.fromkeys(names, k / 10) for k in range(3)]
    curves = {f"run {k}": Curve(losses=scores, scores=scores) for k in range(3)}
    write_report(ReportData("t", curves=curves), tmp_path)
    assert (tmp_path / "figures" / "curves.png").exists()


def test_embeddings_that_are_too_few_are_left_out() -> None:
    few = np.ones((2, 3))
    maps = page_module._maps(replace(full_data(), embeddings={"before": (few, few)}))
    assert maps == {}


def test_the_page_starts_as_a_page(page: str) -> None:
    assert page.startswith("<!doctype html>")


def test_importing_the_report_imports_nothing_heavy() -> None:
    code = "import sys, gmail_align.report.page as p; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "matplotlib", "jinja2", "sklearn"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"gmail-align\[report\]"):
        write_report(full_data(), tmp_path)


def test_bare_numbers_serve_as_estimates() -> None:
    row = {"name": "real", "metrics": {"CIDEr": 0.5}}
    claims = [claim("gmail", "raw", 0.1, "not tested")]
    text = Outline(rendered(ReportData("t", result={"rows": [row], "claims": claims}))).text
    assert "50.0" in text and "no paired difference" in text


def test_more_than_eight_curves_are_folded() -> None:
    data = full_data()
    curve = next(iter(data.curves.values()))  # a curve of losses and one of scores
    text = rendered(replace(data, curves={f"run {k}": curve for k in range(6)}))
    open_part, folded = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL), text
    assert open_part.count('class="chart"') == 8 and folded.count('class="chart"') == 12
    assert text.count("2 curves of run") == 2
