"""LLaVA from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gmail_align.artifacts import load
from gmail_align.cli.main import app
from gmail_align.data.images import ImageStore
from worlds.encoders import World

TINY = "--set optim.steps=2 --set row_tokens=256 --set batch_rows=2 --set device=cpu"


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def out(
    clip_folder: Path, llama: Path, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("command")
    talk = [{"from": "human", "value": "Say a word."}, {"from": "gpt", "value": "word"}]
    (folder / "talks.json").write_text(json.dumps([{"conversations": talk}]))
    words = f"train llava --encoder {clip_folder} --language-model {llama} --out {folder}/llava"
    for source, images, route in (
        (world.captions.folder, world.generated.folder, "generated"),
        (world.pairs.folder, world.real.folder, "frozen"),
        (folder / "talks.json", "none", "frozen"),
    ):
        words += f" --conversations {source} --images {images} --route {route}"
    words += f" --validation-conversations {world.captions.folder}"
    words += f" --validation-images {world.real.folder} {TINY}"
    planned = call(*words.split(), "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert not (folder / "llava").exists()
    result = call(*words.split())
    assert result.exit_code == 0, result.output
    return folder / "llava"


def test_sets_with_routes_of_their_own_are_trained_together(out: Path, world: World) -> None:
    manifest = load(out, "vlm").manifest
    assert manifest["counts"]["samples"] == 24 + 24 + 1
    assert manifest["counts"]["images"] == 24 + 12
    routes = manifest["notes"]["trained_on"]["routes"]
    assert list(routes.values()) == ["generated", "frozen", "frozen", "frozen"]
    assert manifest["inputs"]["train1_images"] == world.generated.fingerprint


def test_a_photo_is_asked_about(out: Path, world: World, tmp_path: Path) -> None:
    ImageStore(world.real).read("r1").save(tmp_path / "photo.png")
    result = call("ask", tmp_path / "photo.png", "What colour?", "--vlm", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["question"] == "What colour?"


def test_one_question_takes_only_settings_that_act(out: Path, tmp_path: Path) -> None:
    for unused in ("--shuffle-images", "--prompt=Why?", "--batch-size=2"):
        ran = call("ask", tmp_path / "photo.png", "What colour?", "--vlm", out, unused)
        assert ran.exit_code == 2
        assert unused.partition("=")[0] in ran.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ask {out}/absent.png What? --vlm {out}", "absent.png"),
        ("ask {out}/absent.png What? --vlm {captions}", "captions"),
        ("predict answers --vlm {out} --questions {captions} --out {out}-x", "captions"),
        (
            "train llava --conversations {captions} --images {real} --images {real}"
            " --encoder tabletop --language-model tabletop --out {out}-x",
            "--route",
        ),
        (
            "train llava --conversations {captions} --images {real} --encoder tabletop"
            " --language-model {captions} --out {out}-x",
            "config.json",
        ),
    ],
)
def test_a_mistake_is_one_sentence(out: Path, world: World, text: str, named: str) -> None:
    places = {"out": out, "captions": world.captions.folder, "real": world.real.folder}
    result = call(*text.format(**places).split())
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("gmail-align: ")]
    assert len(lines) == 1
    assert named in lines[0]
