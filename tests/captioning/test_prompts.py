"""Captions to generate images from: of classes by a language model, of photos by a captioner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from gmail_align.artifacts import Artifact, begin, load
from gmail_align.captioning import prompts
from gmail_align.captioning.config import PredictConfig
from gmail_align.captioning.prompts import continue_captions
from gmail_align.cli.main import app
from gmail_align.data.captions import Caption, read_captions, write_captions
from gmail_align.encoders.shipped import model_path

TINY = "--set optim.steps=1 --set optim.warmup=0 --set batch_size=4 --set max_tokens=12"
CLASSES = ["a red ball.", "a blue cube and a ball.", "a green cone."]


def call(text: str) -> Result:
    return CliRunner().invoke(app, text.split())


@pytest.fixture
def classes(tmp_path: Path) -> Artifact:
    draft = begin(tmp_path / "classes", "captions", {})
    rows = [Caption(f"photo{n}-0", text, f"photo{n}") for n, text in enumerate(CLASSES)]
    return draft.finish({"captions": write_captions(draft, rows)})


def test_a_language_model_goes_on_from_the_captions_of_classes(
    classes: Artifact, tmp_path: Path
) -> None:
    gpt2 = model_path("tabletop", "gpt2")
    made = continue_captions(classes, gpt2, tmp_path / "out", each=2)
    rows = read_captions(made)
    assert [row.caption_id for row in rows] == [f"photo{n}-0-{k}" for n in range(3) for k in (0, 1)]
    assert [row.image_id for row in rows] == [f"photo{n}" for n in range(3) for _ in (0, 1)]
    for number, row in enumerate(rows):
        stem = CLASSES[number // 2].rstrip(".")
        assert row.text.startswith(stem) and row.text.endswith(".") and row.text.count(".") == 1
    assert len({row.text for row in rows}) > 3  # they are drawn, and not the same for each image
    alone = PredictConfig(method="nucleus", batch_size=1)
    one_by_one = continue_captions(classes, gpt2, tmp_path / "alone", alone, each=2)
    assert read_captions(one_by_one) == rows


def test_prompts_that_are_stopped_are_counted(
    classes: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2, how = model_path("tabletop", "gpt2"), PredictConfig(method="greedy")
    whole = continue_captions(classes, gpt2, tmp_path / "whole", how)
    assert "outputs_cut" not in whole.manifest["notes"]
    monkeypatch.setattr(prompts, "MAX_TOKENS", 1)
    made = continue_captions(classes, gpt2, tmp_path / "cut", how)
    assert made.manifest["notes"]["outputs_cut"] == 3


def test_photos_are_captioned_for_prompts(tmp_path: Path) -> None:
    for n in range(4):
        pixels = np.random.default_rng(n).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.png")
    for text in (
        f"tabletop write --out {tmp_path}/world --count 4",
        f"import coco --annotations {tmp_path}/world/captions_train.json"
        f" --images {tmp_path}/world/images --out {tmp_path}/real",
        f"extract {tmp_path}/real/images --encoder tabletop --route frozen --out {tmp_path}/seen",
        f"train clipcap --features {tmp_path}/seen --captions {tmp_path}/real/captions"
        f" --language-model tabletop --out {tmp_path}/clipcap {TINY}",
        f"import folder --source {tmp_path}/photos --out {tmp_path}/import",
        f"caption {tmp_path}/import/images --for-prompts {tmp_path}/prompts --each 2"
        f" --captioner {tmp_path}/clipcap --encoder tabletop",
    ):
        result = call(text)
        assert result.exit_code == 0, (text, result.output)
    rows = read_captions(load(tmp_path / "prompts"))
    assert [row.caption_id for row in rows] == [f"{n}-{k}" for n in range(4) for k in (0, 1)]
    assert not (tmp_path / "prompts" / "parts").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("", "--language-model"),
        ("--captioner x", "--encoder"),
        ("other --language-model tabletop", "one folder"),
        ("--language-model tabletop", "captions"),
        ("--language-model tabletop --each 0", "each"),
    ],
)
def test_what_cannot_write_prompts_is_refused(tmp_path: Path, options: str, named: str) -> None:
    draft = begin(tmp_path / "images", "images", {})
    draft.finish({"images": 0})
    result = call(f"caption {tmp_path}/images {options} --for-prompts {tmp_path}/out")
    assert result.exit_code == 2 and named in result.output
    assert not (tmp_path / "out").exists()


def test_a_captioner_is_needed_to_caption_files(tmp_path: Path) -> None:
    result = call(f"caption {tmp_path}/image.png")
    assert result.exit_code == 2 and "--captioner" in result.output
