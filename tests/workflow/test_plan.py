"""What a plan says: what is to be made, what is missing, and what it costs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gmail_align import pipeline
from gmail_align.encoders.config import LoraSettings
from gmail_align.encoders.encoder import GmailEncoder
from gmail_align.encoders.route import Route
from gmail_align.encoders.shipped import model_path
from gmail_align.errors import MissingExtraError, ModelError
from gmail_align.recipe import read_recipe, recipe_file, recipe_names
from gmail_align.workflow.costs import encoder_shape, language_shape
from gmail_align.workflow.plan import plan_lines
from gmail_align.workflow.steps.data import Imported
from gmail_align.workflow.work import Model, in_order


def shipped(part: str) -> Model:
    return Model("tabletop", part, str(model_path("tabletop", part)))


def kept(run: Callable[[], Any], weights: torch.nn.Module) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in weights.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result is not None
    return sum(sizes.values())


def test_a_plan_counts_what_is_to_be_made(tmp_path: Path) -> None:
    plan = pipeline.plan("demo", tmp_path / "none", card="a100")
    assert plan["existing"] == 0 and plan["missing_steps"] == len(plan["steps"])
    assert plan["gpu_hours"] > 0 and plan["disk_gb"] > 0
    amounts = {cost["what"].partition(" (")[0]: cost["amount"] for cost in plan["costs"]}
    assert amounts["images that tabletop generates from captions"] == 700
    assert amounts["encoder aligned from tabletop, seed 0"] == 3 * 100 * 64
    assert not (tmp_path / "none").exists()


def test_equal_steps_are_one_line_and_tiny_amounts_are_said_to_be_tiny(tmp_path: Path) -> None:
    plan = pipeline.plan("demo", tmp_path)
    lines = plan_lines(plan)
    learners = [line for line in lines if "to make clipcap captioner" in line]
    times = sum(row["what"].partition(",")[0] == "clipcap captioner" for row in plan["steps"])
    assert learners == [f"  to make clipcap captioner, seed 0 ({times} times)"]
    assert "under 0.001 GPU-hours" in "".join(lines) and "e-0" not in "".join(lines)


def test_a_plan_names_what_is_missing(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        """
        [data.train]
        import = "coco"
        source = "no_such.json"
        images = ["no_such.zip"]
        expect = { images = 1000, captions = 5000 }
        [generator]
        preset = "sd2"
        model = "nobody/sd2-copy"
        [encoder]
        base = "openai/clip-vit-base-patch32"
        [align.ours]
        [[row]]
        name = "ours"
        align = "ours"
        """
    )
    plan = pipeline.plan(str(recipe), tmp_path / "work")
    missing = " ".join(need["what"] for need in plan["needs"])
    for name in ("no_such.json", "no_such.zip", "nobody/sd2-copy", "clip-vit-base-patch32"):
        assert name in missing
    (made,) = (cost for cost in plan["costs"] if "generates" in cost["what"])
    assert made["amount"] == 4500  # a tenth of the images is the test set; both parts have images
    assert made["tflop"] == pytest.approx(4500 * 83, rel=0.01)


def test_a_run_without_its_modules_is_refused_before_it_makes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("diffusers", "jinja2", "gensim"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"diffusers.*gmail-align\[report,synthesis\]"):
        pipeline.run("smoke", tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))
    needs = [need["what"] for need in pipeline.plan("smoke", tmp_path)["needs"]]
    assert needs == ["modules: jinja2", "modules: diffusers"]


@pytest.mark.parametrize(
    ("name", "folder", "command"),
    [
        ("paper-llava15-7b", "models/llava15-first", "gmail-align train llava"),
        ("paper-synclr-b16", "data/models/synclr-b16", "gmail-align convert"),
    ],
)
def test_a_folder_that_the_runbook_makes_is_missing_with_its_command(
    name: str, folder: str, command: str, tmp_path: Path
) -> None:
    needs = {need["what"]: need["bring"] for need in pipeline.plan(name, tmp_path)["needs"]}
    bring = needs[f"model: {folder}"]
    assert bring.startswith(command) and bring.endswith(f"--out {folder}") and "\\" not in bring
    steps = pipeline.steps_of(read_recipe(name), tmp_path)
    for step in in_order(steps.targets):
        if isinstance(step, Imported):
            step.source.options.clear()  # type: ignore[attr-defined]  # no data are missing
    with pytest.raises(ModelError, match=re.escape(bring)):
        pipeline.fetch_inputs(steps, {folder: bring})


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("paper-")])
def test_recipes_of_the_paper_can_be_planned(name: str, tmp_path: Path) -> None:
    assert recipe_file(name).read_text().startswith("# ")
    plan = pipeline.plan(name, tmp_path / "work", card="a100")
    needs = " ".join(need["what"] for need in plan["needs"])
    assert "data: " in needs and "model: " in needs
    made = next(cost for cost in plan["costs"] if "generates" in cost["what"])
    assert (made["amount"] is None) == name.startswith("paper-cc")  # links die: nobody knows


def test_a_plan_agrees_with_the_days_that_the_paper_states(tmp_path: Path) -> None:
    """566,747 images take five days of one A100 at the share that the paper reaches."""
    plan = pipeline.plan("paper-clipcap-b32", tmp_path / "work", card="a100", share=0.34)
    made = next(cost for cost in plan["costs"] if "generates" in cost["what"])
    of_training = 566_747 / made["amount"]
    assert made["gpu_hours"] / 24 * of_training == pytest.approx(5, rel=0.05)


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from gmail_align import pipeline\n"
        "pipeline.plan('demo', Path('/nowhere')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sizes_of_an_encoder_are_those_of_its_weights() -> None:
    model = shipped("clip")
    encoder = GmailEncoder.from_pretrained(Path(model.path))
    parameters = sum(parameter.numel() for parameter in encoder.clip.parameters())
    assert encoder_shape(model).parameters == pytest.approx(parameters, rel=0.06)


def test_the_memory_of_alignment_is_what_it_keeps() -> None:
    model = shipped("clip")
    shape = encoder_shape(model)
    encoder = GmailEncoder.from_clip(Path(model.path), LoraSettings(), seed=0)
    encoder.applied = True
    pixels = torch.randn(16, 3, shape.image_size, shape.image_size)
    measured = kept(lambda: encoder.embed_pixels(pixels, Route.GENERATED), encoder)
    formula = shape.training_memory(16) - 4 * shape.parameters
    assert formula == pytest.approx(measured, rel=0.1)


def test_the_memory_of_a_captioner_is_what_it_keeps() -> None:
    from transformers import GPT2LMHeadModel

    model = shipped("gpt2")
    shape = language_shape(model)
    gpt2 = GPT2LMHeadModel.from_pretrained(model.path).train()
    ids = torch.randint(0, shape.vocabulary, (16, 30))
    measured = kept(lambda: torch.logsumexp(gpt2(ids).logits, -1), gpt2)
    formula = shape.training_memory(16, 30) - 16 * shape.parameters
    assert formula == pytest.approx(measured, rel=0.15)
