"""A LLaVA as the learner of a recipe: its steps, and a run at the smallest size."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gmail_align import pipeline
from gmail_align.artifacts import load, read_jsonl
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import ConfigError
from gmail_align.recipe import recipe_of
from gmail_align.vlm.config import LlavaConfig
from gmail_align.vlm.costs import read_shape
from gmail_align.workflow.steps.multimodal import TrainedLlava

RECIPE = """
workers = 1
[data]
train = { kind = "tabletop", images = 8, captions_per_image = 1 }
validation = { kind = "tabletop", images = 4, captions_per_image = 1 }
test = { kind = "tabletop", images = 4 }
[generator]
model = "tabletop"
steps = 1
batch_size = 8
[encoder]
base = "tabletop"
[align.gmail]
[align.shift]
method = "mean_shift"
[learn.llava]
kind = "llava"
preset = "tabletop"
says = ["captions", "answers"]
questions = 2
answer.max_tokens = 3
batch_rows = 1
optim.steps = 1
[[row]]
name = "mixed"
learn = "llava"
images = "mixed"
real_share = 0.25
[evaluate]
answers = ["tabletop_answers"]
gap = false
"""
TABLES: dict[str, Any] = tomllib.loads(RECIPE)


def changed(**learner: Any) -> dict[str, Any]:
    table = {**TABLES["learn"]["llava"], **learner}
    return {**TABLES, "learn": {"llava": table}}


def test_a_row_is_trained_and_answers_questions(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    result = pipeline.run(str(file), tmp_path / "work")
    (row,) = result["rows"]
    assert row["generated_images"] == 6 + 4 and row["real_images"] == 2
    assert row["metrics"]["accuracy"]["n"] == 8
    assert {"CIDEr", "accuracy"} <= row["per_seed"].keys()
    (vlm,) = (tmp_path / "work" / "vlms").iterdir()
    counts = load(vlm, "vlm").counts
    assert counts["samples"] == 8 and counts["images"] == 8
    questions = next((tmp_path / "work" / "questions").glob("*/questions.jsonl"))
    asked = list(read_jsonl(questions))
    assert len(asked) == 8 and all(len(one["answers"]) == 1 for one in asked)
    index = json.loads((tmp_path / "work" / "index.json").read_text())
    assert "LLaVA, seed 0" in {step["what"] for step in index["mixed"]}
    assert pipeline.report_again(tmp_path / "work").exists()


def trained(tables: dict[str, Any], **row: Any) -> TrainedLlava:
    one_row = {**tables, "row": [{"name": "one", "learn": "llava", **row}]}
    steps = pipeline.steps_of(recipe_of(one_row), Path())
    learner = steps.rows["one"][0].learner
    assert isinstance(learner, TrainedLlava)
    return learner


def test_each_side_is_read_by_its_route() -> None:
    routes = {
        images: {
            one.side: one.route for one in trained(TABLES, images=images, align="gmail").images
        }
        for images in ("generated", "real", "mixed")
    }
    assert routes["generated"] == {"generated": "generated"}
    assert routes["real"] == {"real": "frozen"}
    assert routes["mixed"] == {"generated": "generated", "real": "frozen"}
    assert trained(TABLES).images[0].route == "frozen"
    assert trained(TABLES, align="gmail", reads="real").settings.reads == "real"
    assert trained(TABLES, images="real") != trained(TABLES)
    with pytest.raises(ConfigError, match="align.shift"):
        trained(TABLES, align="shift")


def test_captions_alone_ask_no_scene() -> None:
    alone, both = (
        trained(one).images[0].conversations for one in (changed(says=["captions"]), TABLES)
    )
    assert alone.world is None and both.world is not None
    answers = trained(changed(says=["answers"])).images[0].conversations
    assert answers.prompt is None and both.prompt == alone.prompt == "Describe the image."


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        (changed(says=["poems"]), "says"),
        (changed(tune="some"), "tune"),
        (changed(preset="llava"), "preset"),
        (
            {
                **TABLES,
                "evaluate": {"answers": ["mmmu_val"]},
                "data": {"train": {"import": "folder", "source": "photos"}},
            },
            "data.train",
        ),
    ],
)
def test_a_mistake_names_the_key(tables: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        pipeline.steps_of(recipe_of(tables), Path())


def test_a_plan_counts_the_tokens_of_a_llava(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.replace("optim.steps = 1", "optim.epochs = 2.0"))
    plan = pipeline.plan(str(file), tmp_path / "work")
    amounts = {cost["what"]: cost["amount"] for cost in plan["costs"]}
    assert amounts["LLaVA, seed 0"] == 2 * 8
    assert amounts["answers of a LLaVA, seed 0"] == 4


def test_a_plan_says_the_memory_that_training_says(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    plan = pipeline.plan(str(file), tmp_path / "work")
    said = {cost["what"]: cost["memory_gb"] for cost in plan["costs"]}["LLaVA, seed 0"]
    shape = read_shape(model_path("tabletop", "clip"), model_path("tabletop", "llama"))
    assert shape is not None
    config = LlavaConfig.from_preset("tabletop", {"batch_rows": 1})
    assert said == shape.memory(config, guarded=True).total / 1e9


@pytest.mark.parametrize(
    ("name", "words"), [("paper-llava15-7b", 6.74e9), ("paper-llava-llama3-8b", 8.03e9)]
)
def test_a_plan_knows_the_memory_of_the_papers_llavas(
    tmp_path: Path, name: str, words: float
) -> None:
    """More than the frozen weights in bfloat16, and less than an H200 has."""
    plan = pipeline.plan(name, tmp_path / "work")
    said = [cost["memory_gb"] for cost in plan["costs"] if cost["what"].startswith("LLaVA")]
    assert said
    assert all(2e-9 * words < gigabytes < 141 for gigabytes in said)
