"""Check pages with axe-core in headless Chromium, in light and dark, wide and narrow.

Needs Chromium and a copy of axe.min.js (package axe-core of npm). Ends with exit code 1 when a page
has a serious or critical violation.

    python benchmarks/axe.py runs/demo/report/index.html --axe node_modules/axe-core/axe.min.js
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from worlds.browser import browser

SCREENS = ((1300, "light"), (390, "dark"))
GRAVE = ("serious", "critical")


def violations(page_file: Path, axe: str, width: int, scheme: str) -> list[dict[str, Any]]:
    """Return what axe-core has to say of one page on one screen."""
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
        page.open("about:blank", width)
        page.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        page.send("Page.navigate", url=page_file.resolve().as_uri())
        page.wait("Page.loadEventFired")
        page.value(axe)
        listed: list[dict[str, Any]] = page.value(
            "axe.run({resultTypes: ['violations']}).then((result) => result.violations.map("
            "(one) => ({id: one.id, impact: one.impact, help: one.help,"
            " nodes: one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160))})))"
        )
        return listed


def main() -> None:
    """Check every page, and print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--axe", required=True, type=Path)
    options = parser.parse_args()
    axe, grave = options.axe.read_text(encoding="utf-8"), 0
    for page_file in options.pages:
        for width, scheme in SCREENS:
            listed = violations(page_file, axe, width, scheme)
            grave += sum(one["impact"] in GRAVE for one in listed)
            print(f"{page_file}, {width} px, {scheme}: {len(listed)} violations")
            for one in listed:
                print(f"  {one['impact']}: {one['id']}: {one['help']}")
                for node in one["nodes"]:
                    print(f"    {node}")
    raise SystemExit(1 if grave else 0)


if __name__ == "__main__":
    main()
