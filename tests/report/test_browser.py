from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
)


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the document that Chromium made of a page, and the lines of its console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_opens_without_a_word_in_the_console(report: Path, tmp_path: Path) -> None:
    document, console = opened(report / "index.html", tmp_path / "profile")
    assert console == []
    assert "6.2 CIDEr points more than Row raw" in document
    assert document.count("<svg") > 10


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_script_would_be_seen_in_the_console(report: Path, tmp_path: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    page = tmp_path / "bad.html"
    page.write_text(text.replace("</body>", "<script>1</script></body>"), encoding="utf-8")
    _, console = opened(page, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
