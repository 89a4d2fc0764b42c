"""The study of collapse, at the smallest size that has every part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from gmail_align.encoders.shipped import shipped_models
from gmail_align.errors import ConfigError
from gmail_align.recipe import read_recipe
from gmail_align.studies.collapse import BASE, METHODS, CollapseBudget, collapse_within
from gmail_align.studies.real import run_data_study
from gmail_align.studies.run import StudyOptions
from gmail_align.studies.tables import write_tables

TINY = [
    "data.train.images=16",
    "data.validation.images=4",
    "data.test.images=4",
    "generator.steps=2",
    "align.gmail.optim.steps=2",
    "align.gmail.optim.warmup=0",
    "learn.clipcap.optim.steps=2",
    "learn.clipcap.optim.warmup=0",
]


def test_a_generator_learns_from_the_images_of_the_one_before(tmp_path: Path) -> None:
    options = StudyOptions(work=tmp_path)
    recipe, budget = read_recipe(BASE, TINY), CollapseBudget(generations=1, steps=2, seeds=1)
    result = collapse_within(recipe, budget, options)
    names = [f"{name}_{number}" for name in METHODS for number in range(2)]
    assert [row.name for row in result.rows] == [*names, "real"]
    rows = {row.name: row for row in result.rows}
    assert rows["once_0"].values == rows["each_0"].values | {
        "generation": rows["once_0"].values["generation"]
    }
    (home,) = (tmp_path / "collapse").iterdir()
    chain = home / "seed-0"
    weights = "unet/diffusion_pytorch_model.safetensors"
    before = load_file(shipped_models() / "diffusion" / weights)
    after = load_file(chain / "generation-1" / "generator" / weights)
    assert before.keys() == after.keys()
    moved = [np.abs((before[name].float() - after[name].float()).numpy()).max() for name in before]
    assert 0 < max(moved) < 0.1
    config = json.loads((chain / "generation-1/images-train/manifest.json").read_text())["config"]
    assert config["model"] == "generator"  # the one that was trained on, not the shipped one
    page = write_tables(result, tmp_path / "tables")
    assert "Captioned anew, generation 1" in page.read_text()
    assert collapse_within(recipe, budget, options) == result  # nothing is made again


def test_it_reads_no_folder_of_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data"):
        run_data_study("collapse", StudyOptions(work=tmp_path, data=tmp_path))
