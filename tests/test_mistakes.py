"""Mistakes in a recipe: one sentence on stderr and exit code 2, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gmail_align.cli.main import app

HEAD = """
[generator]
model = "tabletop"
steps = 1
[learn.clipcap]
kind = "clipcap"
optim = { steps = 1 }
[align.ours]
optim = { steps = 1 }
"""
DRAWN = """
[data.train]
kind = "tabletop"
images = 20
"""
ROW = """
[[row]]
name = "raw"
learn = "clipcap"
"""


def photos(folder: Path) -> Path:
    """Write a COCO set of 20 images of noise, and return its json."""
    folder.mkdir()
    for k in range(20):
        pixels = np.random.default_rng(k).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg")
    body = {
        "images": [{"id": k, "file_name": f"{k}.jpg"} for k in range(20)],
        "annotations": [{"id": k, "image_id": k, "caption": f"thing {k}"} for k in range(20)],
    }
    path = folder / "captions.json"
    path.write_text(json.dumps(body))
    return path


def refusal(tmp_path: Path, text: str) -> str:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    ran = CliRunner().invoke(app, ["run", str(recipe), "--work", str(tmp_path / "work")])
    assert ran.exit_code == 2, ran.output
    sentence = ran.stderr.strip().splitlines()[-1]
    assert sentence.startswith("gmail-align: ") and "Traceback" not in ran.stderr
    assert not list(tmp_path.glob("work/captioners/*/manifest.json"))
    return sentence


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEAD + DRAWN + ROW + "algin = 'ours'", "align"),
        (HEAD + DRAWN + ROW + "[encoder]\nbase = 'no/such-model'", "no/such-model"),
        (HEAD + DRAWN + ROW + "[encoder]\nbase = '/no/such/folder'", "/no/such/folder"),
        (HEAD + ROW + "[data.train]\nimport = 'coco'\nsource = 'no.json'\nimages = []", "no.json"),
        (HEAD + ROW + "[data.train]\nimport = 'coc'\nsource = 'no.json'", "coco"),
        (HEAD + ROW + "[data.train]\nimport = 'coco'\nsouce = 'no.json'", "sou"),
    ],
)
def test_what_does_not_exist_is_named(text: str, named: str, tmp_path: Path) -> None:
    assert named in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "'data'"),
        ("seeds = 1_000_000_000_000\n" + HEAD + DRAWN + ROW, "seeds"),
        (HEAD + "temperature = inf\n" + DRAWN + ROW, "align.ours: temperature"),
        (HEAD + "lora = { targets = '((' }\n" + DRAWN + ROW, "lora.targets"),
        (HEAD.replace('"tabletop"', '""') + DRAWN + ROW, "diffusion"),
        (HEAD + DRAWN.replace("20", "1" + "0" * 20) + ROW, "data.train"),
        (HEAD + DRAWN + ROW + 'like = "raw"', "'row.#1.like'; did you mean 'row."),
        (HEAD + DRAWN + ROW + 'set = { "generator..steps" = 2 }', "'generator..steps'"),
        (HEAD + DRAWN + ROW + "[[claim]]\nname = 'x'\nbetter = 'raw'\nworse = 'raw'", "claim.#1"),
        (HEAD + ROW + "[data.train]\nimport = 'coco'\nsource = '.'\nsplitt = 'x'", "data.train"),
        (HEAD.replace("steps = 1", 'adapter = "no.safetensors"', 1) + DRAWN + ROW, "no.safetens"),
    ],
)
def test_what_cannot_be_is_named_with_its_place(text: str, named: str, tmp_path: Path) -> None:
    assert named in refusal(tmp_path, text)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = photos(tmp_path / "photos")
    text = HEAD + DRAWN + ROW + f"[encoder]\nbase = '{path.parent}'"
    assert "config.json" in refusal(tmp_path, text)


def test_two_claims_of_one_name_are_refused(tmp_path: Path) -> None:
    claim = "[[claim]]\nname = 'it helps'\nbetter = 'raw'\nworse = 'other'\n"
    rows = ROW + ROW.replace("raw", "other")
    assert "it helps" in refusal(tmp_path, HEAD + DRAWN + rows + claim * 2)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("metric = 'cider'", "CIDEr"),
        ("metric = 'accuracy'", "not measured of both"),
        ("metric = 'WMD'", "METEOR"),
        ("metric = 't2i_r2'\n[evaluate]\nretrieval = ['test']", "t2i_r1"),
        ("metric = 'other/t2i_r1'\n[evaluate]\nretrieval = ['test']", "test/t2i_r1"),
        ("metric = 'text_cosine_real'", "unpaired_cosine"),
        ("metric = 'CIDEr'\n[evaluate]\nsubset = true", "no protocol of captions"),
        ("metric = 'CIDEr'\n[evaluate]\nretrieval = ['imagenet']", "no protocol of retrieval"),
    ],
)
@pytest.mark.parametrize("command", ["run --dry-run", "plan"])
def test_what_nothing_will_measure_is_refused_at_once(
    more: str, named: str, command: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    rows = ROW + ROW.replace("raw", "other")
    claim = "[[claim]]\nname = 'it helps'\nbetter = 'raw'\nworse = 'other'\n"
    recipe.write_text(HEAD + DRAWN + rows + claim + more)
    ran = CliRunner().invoke(app, [*command.split(), str(recipe)])
    assert ran.exit_code == 2 and named in ran.stderr, ran.output


def test_a_learner_without_captions_has_no_metric_of_captions(tmp_path: Path) -> None:
    rows = ROW + ROW.replace("raw", "other").replace("clipcap", "none")
    claim = "[[claim]]\nname = 'it helps'\nbetter = 'raw'\nworse = 'other'\n"
    assert "margin" in refusal(tmp_path, HEAD + DRAWN + rows + claim + "metric = 'marge'\n")
    assert "not measured of both" in refusal(tmp_path, HEAD + DRAWN + rows + claim)


def test_a_missing_image_folder_is_named(tmp_path: Path) -> None:
    path = photos(tmp_path / "photos")
    data = f"[data.train]\nimport = 'coco'\nsource = '{path}'\nimages = ['{tmp_path}/nowhere']\n"
    assert "nowhere" in refusal(tmp_path, HEAD + data + ROW)


def test_a_test_set_that_overlaps_training_is_refused(tmp_path: Path) -> None:
    path = photos(tmp_path / "photos")
    again = photos(tmp_path / "copy")
    data = "".join(
        f"[data.{name}]\nimport = 'coco'\nsource = '{one}'\nimages = ['{one.parent}']\n"
        for name, one in (("train", path), ("test", again))
    )
    assert "20 of 20" in refusal(tmp_path, HEAD + data + ROW)
    data = data.replace(str(again), str(path)).replace(str(again.parent), str(path.parent))
    assert "data.test" in refusal(tmp_path, HEAD + data + ROW)


def test_images_without_captions_are_refused(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "photos" / "captions.json").unlink()
    data = f"[data.train]\nimport = 'folder'\nsource = ['{tmp_path}/photos']\n"
    assert "captions" in refusal(tmp_path, HEAD + data + ROW)
