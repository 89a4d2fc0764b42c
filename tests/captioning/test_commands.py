"""Captioners from the command line, on eight scenes and the shipped models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gmail_align.artifacts import load, read_jsonl
from gmail_align.cli.main import app

TINY = "--set optim.steps=2 --set optim.warmup=1 --set batch_size=4 --set max_tokens=12"


def call(text: str) -> Result:
    return CliRunner().invoke(app, text.split())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioners")
    for text in (
        f"tabletop write --out {folder}/world --count 8",
        f"import coco --annotations {folder}/world/captions_train.json"
        f" --images {folder}/world/images --out {folder}/real",
        f"extract {folder}/real/images --encoder tabletop --route frozen --out {folder}/seen",
        f"extract {folder}/real/captions --encoder tabletop --out {folder}/texts",
        f"train clipcap --features {folder}/seen --captions {folder}/real/captions"
        f" --language-model tabletop --out {folder}/clipcap {TINY}",
        f"train ifcap --captions {folder}/real/captions --texts {folder}/texts"
        " --language-model tabletop"
        f" --validation-features {folder}/seen --validation-captions {folder}/real/captions"
        f" --out {folder}/ifcap {TINY} --set layers=1 --set max_nouns=3",
    ):
        result = call(text)
        assert result.exit_code == 0, (text, result.output)
    return folder


@pytest.mark.parametrize("kind", ["clipcap", "ifcap"])
def test_files_are_captioned_as_their_features_are(work: Path, kind: str) -> None:
    said = call(
        f"predict captions --captioner {work}/{kind} --features {work}/seen --method greedy"
        f" --out {work}/{kind}-said"
    )
    assert said.exit_code == 0, said.output
    expected = list(read_jsonl(work / f"{kind}-said" / "predictions.jsonl"))
    names = {row["image_id"]: row["text"] for row in expected}
    world = json.loads((work / "world" / "captions_train.json").read_text())
    files = {str(image["id"]): image["file_name"] for image in world["images"]}
    paths = [str(work / "world" / "images" / files[name]) for name in list(names)[:3]]
    shown = call(
        f"caption {' '.join(paths)} --captioner {work}/{kind} --encoder tabletop --method greedy"
        " --json"
    )
    assert shown.exit_code == 0, shown.output
    rows = json.loads(shown.stdout)["captions"]
    assert [row["file"] for row in rows] == paths
    assert [row["text"] for row in rows] == list(names.values())[:3]
    plain = call(
        f"caption {paths[0]} --captioner {work}/{kind} --encoder tabletop --method greedy --quiet"
    )
    assert plain.exit_code == 0


def test_a_training_goes_on_and_mixes(work: Path) -> None:
    mixed = f"--features {work}/seen --captions {work}/real/captions"
    text = f"train clipcap {mixed} {mixed} --language-model {work}/clipcap --out {work}/on {TINY}"
    result = call(text + " --json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["counts"]["captions"] == 80
    assert (
        load(work / "on").manifest["inputs"]["language_model"] == load(work / "clipcap").fingerprint
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("caption {w}/absent.png --captioner {w}/clipcap --encoder tabletop", "absent.png"),
        ("caption {w}/bad.png --captioner {w}/clipcap --encoder tabletop", "bad.png"),
        ("caption {w}/bad.png --captioner {w}/seen --encoder tabletop", "seen holds"),
        (
            "predict captions --captioner {w}/clipcap --features {w}/texts --out {w}/x",
            "texts holds",
        ),
        (
            "train clipcap --features {w}/seen --captions {w}/real/captions --captions {w}/texts"
            " --language-model tabletop --out {w}/x",
            "--captions",
        ),
        (
            "train ifcap --captions {w}/real/captions --texts {w}/seen --language-model tabletop"
            " --out {w}/x",
            "seen does not",
        ),
        (
            "train ifcap --captions {w}/real/captions --texts {w}/texts --language-model tabletop"
            " --out {w}/x --set mode=mix",
            "mode is mix",
        ),
        ("convert-clipcap {w}/bad.png --gpt2 {w}/clipcap/language_model --out {w}/x", "bad.png"),
    ],
)
def test_a_mistake_is_one_sentence(work: Path, text: str, sentence: str) -> None:
    (work / "bad.png").write_bytes(b"no image")
    result = call(text.format(w=work))
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("gmail-align: ")]
    assert len(lines) == 1
    assert sentence in lines[0]
