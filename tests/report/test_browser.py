from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gmail_align.features.store import Features
from gmail_align.report.gap import write_gap_report
from gmail_align.report.gap_pictures import GapImages, GapSide
from worlds.browser import CHROMIUM, Page, browser

from .conftest import encoded
from .test_gap import result

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class Pictures:
    """Images by their ids; what an image store is to the page."""

    def read_bytes(self, image_id: str) -> bytes:
        return encoded(shade=10 * int(image_id[1:]))


@pytest.fixture(scope="module")
def opened(report: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.open((report / "index.html").as_uri())
        yield page


def captions(page: Page) -> list[str]:
    """Return the captions of the listed pairs, shortened to their number."""
    script = "[...document.querySelectorAll('.pair-list button > span:nth-of-type(2)')]"
    return [text.split()[-1] for text in page.value(f"{script}.map((node) => node.textContent)")]


def test_the_page_opens_without_a_word_in_the_console(opened: Page) -> None:
    assert opened.console == []
    assert "6.2 CIDEr points more than Row raw" in opened.value("document.body.textContent")
    assert opened.value("document.querySelectorAll('svg').length") > 10


def test_another_script_does_not_run(report: Path, tmp_path: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    bad.write_text(text.replace("</body>", "<script>window.ran = 1</script></body>"), "utf-8")
    with browser(tmp_path / "profile") as page:
        page.open(bad.as_uri())
        assert page.value("window.ran") is None
        assert any("Content Security Policy" in line for line in page.console)


def test_a_point_shows_its_pair_and_its_cosine(opened: Page) -> None:
    opened.hover('svg[data-map="Before"] circle[data-pair="3"]')
    card = opened.value("document.getElementById('pair-card').textContent")
    assert "pair 3" in card and "Before: cosine" in card and "After: cosine 1.000" in card
    assert opened.value("document.querySelectorAll('[data-pair].chosen').length") == 4
    assert opened.value("document.querySelectorAll('.tie:not([hidden])').length") == 2
    assert opened.value("document.querySelectorAll('#pair-card img').length") == 2


def test_pairs_are_ordered_by_their_cosine(opened: Page) -> None:
    cosines = opened.value("JSON.parse(document.getElementById('pairs-data').textContent)")
    before = cosines["maps"][0]["cosines"]
    assert captions(opened) == [str(k) for k in range(12)]
    opened.value(
        "(() => { const order = document.getElementById('pair-order');"
        "order.value = 'farthest first, Before'; order.dispatchEvent(new Event('change')); })()"
    )
    assert captions(opened) == [str(k) for k in sorted(range(12), key=lambda k: before[k])]


def test_pairs_are_searched_by_words(opened: Page) -> None:
    opened.click("#pair-words")
    opened.write("pair 7")
    assert captions(opened) == ["7"]


def test_a_table_sorts_by_a_column_both_ways(opened: Page) -> None:
    script = "[...document.querySelectorAll('#table-rows tbody th')].map((n) => n.firstChild.data)"
    opened.click("#table-rows thead th:nth-child(2) button")
    rising = opened.value(script)
    opened.click("#table-rows thead th:nth-child(2) button")
    assert rising[0] == "Row raw" and opened.value(script) == rising[::-1]


@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_is_no_wider_than_the_screen(opened: Page, width: int) -> None:
    opened.resize(width, 800)
    assert opened.value("document.documentElement.scrollWidth") <= width


def test_the_page_of_a_gap_shows_images_and_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(8, 5))
    features = real, real[::-1] + 0.1
    ids = [f"i{k}" for k in range(8)]
    classes = {name: "far" if k < 4 else "near & dear" for k, name in enumerate(ids)}
    side = GapSide(Features(ids, torch.from_numpy(real).float()), Pictures(), classes)
    pairs = list(zip(ids, ids[::-1], strict=True))
    images = GapImages(side, side, pairs, "some encoder")
    page_file = write_gap_report(
        result(), features, tmp_path / "gap", images=images, command="again"
    )
    with browser(tmp_path / "profile") as page:
        page.open(page_file.as_uri())
        assert page.console == []
        assert page.value("document.querySelectorAll('.gallery img').length") == 8
        page.hover('svg[data-map] circle[data-pair="2"]')
        card = page.value("document.getElementById('pair-card').textContent")
        expected = real[2] @ (real[2] + 0.1)
        expected /= np.linalg.norm(real[2]) * np.linalg.norm(real[2] + 0.1)
        assert "i2 and i5" in card and f"cosine {expected:.3f}" in card
        border = "getComputedStyle(document.querySelector('.gallery img.{}')).borderBottomColor"
        colours = {page.value(border.format(kind)) for kind in ("real", "generated")}
        text = page.value("getComputedStyle(document.body).color")
        assert len(colours | {text}) == 3  # each kind has a colour of its own
