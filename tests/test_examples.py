"""The examples and notebooks, run at a tiny size on a folder of captioned images."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import gmail_align as ga

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_notebook(name: str, **tiny: Any) -> dict[str, Any]:
    """Execute a notebook's code, with other values for what its first cell sets."""
    book = json.loads((EXAMPLES / name).read_text())
    code = ["".join(one["source"]) for one in book["cells"] if one["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(code):
        exec(compile(cell, f"{name}, code cell {number}", "exec"), names)
        if number == 0:
            assert set(tiny) <= set(names)
            names |= tiny
    return names


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *words: str | Path) -> str:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return printed.getvalue()


def test_the_first_lines_of_the_readme(tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "README.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {})
    assert "tensor([[" in printed.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten drawn scenes, with their first captions in ``metadata.csv``."""
    home = tmp_path_factory.mktemp("examples")
    ga.write_tabletop(home / "world", {"train": 10})
    world = json.loads((home / "world/captions_train.json").read_text())
    captions = {one["image_id"]: one["caption"] for one in world["annotations"]}
    folder = home / "photos"
    folder.mkdir()
    rows = ["file_name,text"]
    for image in world["images"]:
        (home / "world/images" / image["file_name"]).rename(folder / image["file_name"])
        rows.append(f'{image["file_name"]},"{captions[image["id"]]}"')
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def made(photos: Path) -> dict[str, Any]:
    """What the notebook on own photos makes, in the folder around them."""
    with contextlib.chdir(photos.parent):
        return run_notebook(
            "gmail_on_own_photos.ipynb",
            SAMPLING={"steps": 2, "scheduler": "dpmpp"},
            ALIGNMENT={"optim.steps": 2, "batch_size": 4},
            CAPTIONING={"optim.steps": 2, "optim.warmup": 0, "batch_size": 4, "max_tokens": 6},
        )


def test_the_notebook_on_own_photos_ends_with_captions(made: dict[str, Any]) -> None:
    assert made["pairs"].counts["pairs"] == 10
    assert made["said"].counts["images"] == 10


def test_the_notebook_on_the_gap_finds_none_between_a_folder_and_itself(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_notebook("gap_of_two_folders.ipynb", REAL=photos, GENERATED=photos)
    assert len(names["files"]["real"]) == 10
    assert float(names["nearest"].min()) == pytest.approx(1, abs=1e-5)
    assert capsys.readouterr().out.count(".jpg") == 5


def test_the_scripts_run(
    made: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "probe_auc" in run_script(monkeypatch, "gap.py", photos, photos)
    work, image = photos.parent / "work", next(photos.glob("*.jpg"))
    shown = run_script(monkeypatch, "caption.py", work / "captioner", work / "encoder", image)
    assert shown.startswith(f"{image}\t")
