"""Write ``docs/licences.md``: the licence of every pinned package, as it says itself.

python docs/licences.py
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
_HEAD = """# Licences

gmail-align has the licence Apache-2.0, and so have the models that it ships. Below is what each
package that `constraints.txt` pins says of its own licence. `docs/licences.py` writes this page.

The weights and images that you use have licences of their own. A generator's licence may limit what
its images may train.

| package | licence |
| --- | --- |
"""


def licence(name: str) -> str:
    """Return a package's licence in a few words: its expression, its classifiers or its field."""
    said = metadata(name)
    classified = [
        one.rpartition(" :: ")[2].removesuffix(" License")
        for one in said.get_all("Classifier", [])
        if one.startswith("License :: ") and not one.endswith("OSI Approved")
    ]
    field = (said.get("License") or "").strip().split("\n")[0]
    words = said.get("License-Expression") or ", ".join(classified) or field
    return words[:60].replace("|", "/") or "does not say"


def main() -> None:
    """Write the page."""
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    rows = []
    for name in sorted(names, key=str.lower):
        try:
            rows.append(f"| {name} | {licence(name)} |")
        except PackageNotFoundError:
            continue  # builds the package, and does not come with it
    PAGE.write_text(_HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
