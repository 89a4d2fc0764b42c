"""Install the wheel into an empty environment, away from the repository, and run a recipe there.

    python benchmarks/wheel.py [smoke | demo]

Prints the size of the wheel, the packages that it brings and the time of each step. Needs a package
index. ``smoke`` runs every stage at the smallest size, ``demo`` what ``make demo`` runs. Without
either the installed command lists the recipes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def call(where: Path, *words: str | Path) -> str:
    """Run a command in a folder, without what this shell knows of Python packages."""
    away = {name: one for name, one in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(words, cwd=where, env=away, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{words} failed:\n{ran.stdout}\n{ran.stderr}")
    return ran.stdout


def main() -> None:
    """Build, install, run, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", choices=("smoke", "demo"), help="what to run")
    recipe = parser.parse_args().recipe
    with tempfile.TemporaryDirectory() as name:
        work, start = Path(name), time.monotonic()
        here = Path(sys.executable)
        call(ROOT, here, "-m", "pip", "wheel", "-q", "--no-deps", ".", "-w", work)
        (wheel,) = work.glob("*.whl")
        print(f"wheel: {wheel.stat().st_size / 1e6:.1f} MB in {time.monotonic() - start:.0f} s")
        venv.create(work / "empty", with_pip=True)
        python, start = work / "empty/bin/python", time.monotonic()
        pins = ("-c", str(ROOT / "constraints.txt"))
        call(work, python, "-m", "pip", "install", "-q", *pins, f"{wheel}[demo]")
        listed = json.loads(call(work, python, "-m", "pip", "list", "--format", "json"))
        packages = [one for one in listed if one["name"] not in ("pip", "setuptools")]
        print(f"install: {len(packages)} packages in {time.monotonic() - start:.0f} s")
        command, start = work / "empty/bin/gmail-align", time.monotonic()
        shown = call(work, command, *(("run", recipe) if recipe else ("recipes", "list")))
        print(f"run: {time.monotonic() - start:.0f} s\n{shown}")
        if recipe:
            page = work / "runs" / recipe / "report/index.html"
            print(f"report: {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
